"""Pipelines that share the loaded weights, as a runner runs them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cache_dit_serving.pipeline.decoded import gives_tensors
from cache_dit_serving.pipeline.output import Arriving, OutputFields, arriving, audio_rate_of, media_of, output_of
from cache_dit_serving.pipeline.prompts import tokenizers_of
from cache_dit_serving.planning.call import ImageCall

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from cache_dit_serving.pipeline.cache import PipelineCache
    from cache_dit_serving.pipeline.samplers import Samplers


@dataclass(frozen=True)
class Part:
    """One of the pipelines that share the loaded weights, with its cache and traits."""

    pipe: DiffusionPipeline
    cache: PipelineCache
    """cache-dit on this pipeline."""
    samplers: Samplers
    output: OutputFields
    audio_rate: int | None
    """Samples a second of the pipeline's sound; None if it makes none."""
    tokenizers: dict[str, Any]
    has_callback: bool
    gives_tensors: bool
    """True if `output_type="pt"` gives the values of `"np"` as a tensor on the device."""

    @classmethod
    def of(cls, pipe: DiffusionPipeline, cache: PipelineCache, samplers: Samplers) -> Part:
        """Return the part for a pipeline on its device, with its cache and its schedulers."""
        has_callback = "callback_on_step_end" in inspect.signature(type(pipe).__call__).parameters
        return cls(
            pipe,
            cache,
            samplers,
            output_of(type(pipe)),
            audio_rate_of(pipe),
            tokenizers_of(pipe),
            has_callback,
            gives_tensors(pipe),
        )

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

    @cached_property
    def blocks_around(self) -> list[Any]:
        """Blocks of the networks that run before the first step and after the last one, such as encoders and VAE."""
        from torch.nn import Module, ModuleList, Sequential

        denoisers = self.denoisers
        networks = [each for each in self.pipe.components.values() if isinstance(each, Module)]
        lists = [
            part
            for network in networks
            if not any(network is denoiser for denoiser in denoisers)
            for part in network.modules()
            if isinstance(part, ModuleList | Sequential)
        ]
        return list(dict.fromkeys(block for each in lists for block in each if block is not None))

    def output_type(self, call: ImageCall) -> str:
        """Return the output type of the pipeline's call."""
        return "pt" if self.gives_tensors and not call.keep_floats else "np"

    def arriving(self, output: Any, call: ImageCall) -> Arriving:
        """Return the only output of a call that was made with :meth:`output_type`."""
        fps = call.video.fps if call.video else None
        if self.output_type(call) == "pt":
            return arriving(output, self.output, fps=fps, audio_rate=self.audio_rate)
        media = media_of(output, self.output, fps=fps, audio_rate=self.audio_rate)
        return Arriving(media.array.shape, lambda: media)
