"""The first generations: whether the cache runs on this pipeline, and whether what requests get by default does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from cache_dit_serving.caching.settings import CacheSettings, CacheType
from cache_dit_serving.caching.speeds import CacheChoice
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.errors import LoadError, OutOfMemory, ServingError
from cache_dit_serving.media.images import check_finite
from cache_dit_serving.pipeline.environment import library_versions
from cache_dit_serving.pipeline.protocol import DrawRecord, Runner
from cache_dit_serving.planning.call import Drawing, GenerationCall
from cache_dit_serving.planning.example import example_request
from cache_dit_serving.planning.plan import plan

logger = logging.getLogger(__name__)

TRIAL_STEPS = 4
PROGRESS_S = 2.0
"""Between two reports of how far a picture is."""


def try_cache(runner: Runner, cache_type: CacheType) -> str | None:
    """Draw in a few steps that reuse what they can: some families can be enabled and then fail in their forward pass.

    Returns:
        Why the type cannot be offered; None where it runs.
    """
    settings = CacheSettings.model_validate(
        {"cache_type": cache_type, "Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 1.0}
    )
    steps = max(TRIAL_STEPS, runner.model.traits.steps.least)
    call = _planned(runner, speed="lossless", num_inference_steps=steps)
    try:
        runner.draw(call, Drawing(0, CacheChoice(settings, "custom")), lambda done: None)
    except Exception as error:
        logger.exception("%s fails on this pipeline", cache_type)
        cause = "does not fit into the device's memory" if isinstance(error, OutOfMemory) else "fails"
        version = library_versions()["cache-dit"]
        name = runner.model.traits.pipeline_class
        return f"{cache_type} of cache-dit {version} {cause} in the forward pass of {name}"
    return None


def warm_up(
    runner: Runner, settings: Settings, progress: Callable[[str], None]
) -> list[tuple[GenerationCall, DrawRecord]]:
    """Draw at the default size in a few steps; in all steps at each speed where the configuration wants their rates.

    Raises:
        LoadError: what every request would fail on.
    """
    whole = _planned(runner)  # refuses defaults that no request could run with
    if not settings.server.warm_up:
        return []
    if not settings.speeds.warm_up:
        # Without the cache, whose code the trials have run: a cached picture of few steps would say little of its rate.
        steps = max(TRIAL_STEPS, runner.model.traits.steps.least)
        call = _planned(runner, num_inference_steps=steps, speed="lossless")
        return [_draw(runner, call, f"{steps} steps", progress)]
    speeds = runner.model.speeds
    default = speeds.name_of(speeds.default)
    others = [speed for speed in speeds.allowed if speed != default]
    drawn = [_draw(runner, whole, f"the default speed, 1 of {len(others) + 1}", progress)]
    for number, speed in enumerate(others, start=2):
        call = _planned(runner, speed=speed)
        drawn.append(_draw(runner, call, f"speed {speed}, {number} of {len(others) + 1}", progress))
    for _, record in drawn:
        if record.cache.enabled and not record.cache.engaged:
            logger.warning("the cache did not engage at speed %s: %s", record.cache.speed, record.cache.reason)
    return drawn


def _draw(
    runner: Runner, call: GenerationCall, what: str, progress: Callable[[str], None]
) -> tuple[GenerationCall, DrawRecord]:
    progress(f"warming up with one picture ({what})")
    last_logged = time.monotonic()

    def on_step(done: int) -> None:
        nonlocal last_logged
        if time.monotonic() - last_logged >= PROGRESS_S:
            last_logged = time.monotonic()
            progress(f"warming up with one picture ({what}), step {done} of {call.num_inference_steps}")

    try:
        image = runner.draw(call, call.drawings[0], on_step)
        check_finite(image.media)
    except ServingError as error:
        raise _failed(error) from error
    return call, image.record


def _planned(runner: Runner, **fields: Any) -> GenerationCall:
    try:
        return plan(example_request(**fields), runner.model)
    except ServingError as error:
        raise _failed(error) from error


def _failed(error: ServingError) -> LoadError:
    return LoadError(f"a request with the defaults fails: {error.message}")
