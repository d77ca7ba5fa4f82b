"""A loaded model in this process, without a server."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.config.settings import Limits, ModelSettings, RequestDefaults, Settings
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.pipeline.protocol import Loaded, Sampled, TakePreview
from cache_dit_serving.pipeline.runner import PipelineRunner
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.families import save_family

SERVED = load_settings({"CACHE_DIT_SERVING__SPEEDS__WARM_UP": "false"})
"""The embedded model without the pictures that it draws at each speed when it starts."""
EMBEDDED = SERVED.model_copy(update={"model": SERVED.model.model_copy(update={"schedulers": {}})})
"""The same without schedulers to choose: to try them is half of a load, and as much as ten seconds on ranks."""


STEPS = 14


PIXART = Settings(
    cache=CacheSettings(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.8),
    defaults=RequestDefaults(
        width=64, height=64, num_inference_steps=6, pipeline_arguments={"use_resolution_binning": False}
    ),
)


def tiny_wan(folder: Path) -> Settings:
    """Settings of a tiny Wan with random weights, which this saves into a folder."""
    return Settings(
        model=ModelSettings(path=str(save_family("Wan", folder)), dtype="float32"),
        cache=CacheSettings(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.9),
        defaults=RequestDefaults(width=32, height=32, num_frames=9, num_inference_steps=6),
        limits=Limits(min_side=32),
    )


UNCACHED = EMBEDDED.model_copy(update={"cache": None})


def unwarmed(settings: Settings) -> Settings:
    """The same settings without the pictures of the start, which take half of its time."""
    return settings.model_copy(update={"server": settings.server.model_copy(update={"warm_up": False})})


def with_cache(**fields: Any) -> Settings:
    return unwarmed(EMBEDDED.model_copy(update={"cache": CacheSettings(**fields)}))


class Watch:
    """Calls `on_step` after each step, which may raise."""

    cancelled = False

    def __init__(self, on_step: Callable[[int], None]) -> None:
        self._on_step = on_step
        self.cached = 0
        """Steps that reused blocks, as last heard."""

    def progress(self, done: int, cached: int) -> None:
        self.cached = cached
        self._on_step(done)

    def preview(self, done: int, take: TakePreview) -> None:
        pass


def load(settings: Settings) -> Loaded:
    return assemble(settings, lambda what: None)


@functools.cache
def known() -> Loaded:
    """The embedded model, unwarmed, as this process has loaded it first."""
    return load(unwarmed(EMBEDDED))


def load_again(progress: Callable[[str], None] = lambda what: None) -> Loaded:
    """The embedded model once more, unwarmed: nothing is tried after the first time, which takes half of a load."""
    return assemble(unwarmed(EMBEDDED), progress, known())


def inside(loaded: Loaded) -> PipelineRunner:
    assert isinstance(loaded.runner, PipelineRunner)
    return loaded.runner


def draw(loaded: Loaded, on_step: Callable[[int], None] = lambda done: None, **fields: Any) -> Sampled:
    defaults = {"prompt": "a red apple on a blue background", "seed": 3, "num_inference_steps": STEPS}
    call = plan(resolve(GenerateRequest.model_validate(defaults | fields), loaded.model)).call
    return loaded.runner.sample(replace(call, keep_floats=True), Watch(on_step))


def held_tensors(loaded: Loaded) -> list[Any]:
    contexts = inside(loaded)._cache._manager_contexts()
    return [value for context in contexts.values() for value in context.buffers.values() if hasattr(value, "shape")]
