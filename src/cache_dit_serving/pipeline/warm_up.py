"""The first generations: whether the cache runs on this pipeline, and whether what requests get by default does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cache_dit_serving.caching.settings import CacheSettings, CacheType
from cache_dit_serving.caching.speeds import CacheChoice
from cache_dit_serving.config import Settings
from cache_dit_serving.errors import LoadError, OutOfMemory, ServingError
from cache_dit_serving.media.images import check_finite
from cache_dit_serving.pipeline.arguments import Drawing, GenerationCall
from cache_dit_serving.pipeline.environment import library_versions
from cache_dit_serving.schemas import GenerateRequest

if TYPE_CHECKING:
    from cache_dit_serving.pipeline.runner import DrawnImage, Runner

logger = logging.getLogger(__name__)

TRIAL_STEPS = 4


def try_cache(runner: Runner, cache_type: CacheType) -> str | None:
    """Draw in a few steps that reuse what they can: some families can be enabled and then fail in their forward pass.

    Returns:
        Why the type cannot be offered; None where it runs.
    """
    settings = CacheSettings.model_validate(
        {"cache_type": cache_type, "Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 1.0}
    )
    steps = max(TRIAL_STEPS, runner.traits.least_num_inference_steps)
    call = _planned(runner, speed="lossless", num_inference_steps=steps)
    try:
        runner.draw(call, Drawing(0, CacheChoice(settings, "custom")), lambda done: None)
    except Exception as error:
        logger.exception("%s fails on this pipeline", cache_type)
        cause = "does not fit into the device's memory" if isinstance(error, OutOfMemory) else "fails"
        version = library_versions()["cache-dit"]
        name = runner.traits.pipeline_class
        return f"{cache_type} of cache-dit {version} {cause} in the forward pass of {name}"
    return None


def warm_up(
    runner: Runner, settings: Settings, progress: Callable[[str], None]
) -> list[tuple[GenerationCall, DrawnImage]]:
    """Draw with the defaults, and at each speed where the configuration wants their rates from the start.

    Raises:
        LoadError: what every request would fail on.
    """
    requests: list[dict[str, Any]] = [{}]
    if settings.speeds.warm_up:
        usual = runner.speeds.name_of(runner.speeds.default)
        requests += [{"speed": speed} for speed in runner.speeds.allowed if speed != usual]
    drawn = []
    for fields in requests:
        progress(f"warming up with one generation ({fields.get('speed', 'the defaults')})")
        call = _planned(runner, **fields)
        try:
            image = runner.draw(call, call.drawings[0], lambda done: None)
            check_finite(image.pixels)
        except ServingError as error:
            raise _failed(error) from error
        drawn.append((call, image))
        if image.cache.enabled and not image.cache.engaged:
            logger.warning("the cache did not engage at speed %s: %s", image.cache.speed, image.cache.reason)
    return drawn


def _planned(runner: Runner, **fields: Any) -> GenerationCall:
    try:
        return runner.plan(GenerateRequest.model_validate({"prompt": "warm-up", "seed": 0} | fields))
    except ServingError as error:
        raise _failed(error) from error


def _failed(error: ServingError) -> LoadError:
    return LoadError(f"the warm-up generation failed: {error.message}")
