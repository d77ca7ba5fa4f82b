"""Pipelines that share the loaded weights, as a runner runs them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cache_dit_serving.media.values import Media
from cache_dit_serving.pipeline.output import OutputFields, audio_rate_of, media_of, output_of
from cache_dit_serving.pipeline.prompts import tokenizers_of
from cache_dit_serving.planning.call import ImageCall

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from cache_dit_serving.pipeline.cache import PipelineCache


@dataclass(frozen=True)
class Part:
    """One of the pipelines that share the loaded weights, with its cache and traits."""

    pipe: DiffusionPipeline
    cache: PipelineCache
    """cache-dit on this pipeline."""
    output: OutputFields
    audio_rate: int | None
    """Samples a second of the pipeline's sound; None if it makes none."""
    tokenizers: dict[str, Any]
    has_callback: bool

    @classmethod
    def of(cls, pipe: DiffusionPipeline, cache: PipelineCache) -> Part:
        """Return the part for a pipeline on its device, with its cache."""
        has_callback = "callback_on_step_end" in inspect.signature(type(pipe).__call__).parameters
        return cls(pipe, cache, output_of(type(pipe)), audio_rate_of(pipe), tokenizers_of(pipe), has_callback)

    @property
    def name(self) -> str:
        """Name of the pipeline's class."""
        return type(self.pipe).__name__

    @property
    def denoisers(self) -> list[Any]:
        """Networks that run once or twice a step."""
        return [
            module
            for name, module in self.pipe.components.items()
            if module is not None and name.startswith(("transformer", "unet", "prior"))
        ]

    def media_of(self, output: Any, call: ImageCall) -> Media:
        """Return the only output of a call that was made with `output_type="np"`."""
        fps = call.video.fps if call.video else None
        return media_of(output, self.output, fps=fps, audio_rate=self.audio_rate)
