"""First images of a loaded model: trials of the cache and of each task, compilation, and the warm-up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

from cache_dit_serving.caching.settings import CacheSettings, CacheType
from cache_dit_serving.caching.speeds import CacheChoice
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.errors import LoadError, OutOfMemory, ServingError
from cache_dit_serving.media.images import check_finite
from cache_dit_serving.pipeline.failure import summary
from cache_dit_serving.pipeline.protocol import Runner, SampleRecord, TakePreview, Unwatched
from cache_dit_serving.planning.call import ImageCall
from cache_dit_serving.planning.example import example_of, guiding, simplest_task
from cache_dit_serving.planning.fields.size import Height, Width
from cache_dit_serving.planning.fields.video import least_frames
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.planning.tasks import SERVED_TASKS, Input, Task

logger = logging.getLogger(__name__)

TRIAL_STEPS = 4
TRIAL_PIXELS = 256 * 256
"""Greatest number of pixels in a trial on a CPU, where four steps at 1024 x 1024 take minutes."""
REPORT_PROGRESS_S = 2.0
"""Least interval between two reports of an image's progress, seconds."""


class CacheTypeFails(Exception):
    """Error for a cache type that cannot run on the pipeline; its message may be shown to callers."""


def try_cache(runner: Runner, model: PlannedModel, cache_type: CacheType) -> SampleRecord:
    """Draw a few steps that reuse as much as possible, to find families that fail only in their forward pass.

    On a CPU the image is small. A family that fails at a small size is tried at its default size.

    Raises:
        CacheTypeFails: the cache type cannot be offered; the message has the reason.
    """
    settings = CacheSettings.model_validate(
        {"cache_type": cache_type, "Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 1.0}
    )
    choice = CacheChoice(settings, "custom")
    if runner.facts.device == "cpu" and _draws_large(model):
        try:
            small = replace(short(model, pixels=TRIAL_PIXELS), cache=choice)
            return runner.sample(small, Unwatched()).record
        except Exception as error:  # noqa: BLE001 (libraries fail on a small size in many ways)
            logger.info("%s is tried at the default size (%s at a small one)", cache_type, type(error).__name__)
    try:
        return runner.sample(replace(short(model), cache=choice), Unwatched()).record
    except Exception as error:
        logger.exception("%s fails on this pipeline", cache_type)
        no_memory = isinstance(error, OutOfMemory)
        cause = "does not fit into the device's memory" if no_memory else "fails"
        version = runner.facts.versions["cache-dit"]
        raise CacheTypeFails(
            f"{cache_type} of cache-dit {version} {cause} in the forward pass of {model.traits.pipeline_class}"
            + ("" if no_memory else f" ({summary(error)})")
        ) from error


def _draws_large(model: PlannedModel) -> bool:
    """Return whether requests may set the size, and the default one has more than `TRIAL_PIXELS`."""
    sides = (Width(), Height())
    return all(side.accepted(model) for side in sides) and prod(side.default(model) for side in sides) > TRIAL_PIXELS


def compile_ahead(runner: Runner, model: PlannedModel, settings: Settings, progress: Callable[[str], None]) -> None:
    """Draw a few steps of each case that torch.compile compiles: each declared size, no LoRA, and each LoRA alone.

    Raises:
        LoadError: an image fails, or the model does not take a declared size.
    """
    if settings.compile is None or not settings.server.warm_up:
        return
    wanted: list[dict[str, Any]] = [{"width": width, "height": height} for width, height in settings.compile.sizes]
    choosable = [lora for lora in model.loras if not lora.fused and lora.contents is not None]
    wanted = wanted or [{}]
    if choosable:
        wanted += [{"loras": []}, *({"loras": [{"name": lora.name}]} for lora in choosable)]
    for number, fields in enumerate(wanted, start=1):
        call = _planned(model, num_inference_steps=_few_steps(model), speed="lossless", **fields)
        started = time.perf_counter()
        _, record = _draw(runner, call, f"compiling with one picture ({number} of {len(wanted)})", progress)
        seconds = time.perf_counter() - started
        logger.info("compiled %d graphs in %.0f s", record.compiled_graphs, seconds)


def warm_up(
    runner: Runner, model: PlannedModel, settings: Settings, progress: Callable[[str], None]
) -> tuple[tuple[ImageCall, SampleRecord], ...]:
    """Draw a few steps at the default size, or with `speeds.warm_up` a whole image at each speed.

    Returns the calls with their records; empty without `server.warm_up`.

    Raises:
        LoadError: a request with the defaults fails.
    """
    whole = _planned(model)  # refuses defaults that no request could run with
    if not settings.server.warm_up:
        return ()
    if not settings.speeds.warm_up:
        # Without the cache: the trials have run its code, and a cached image of few steps is no measure of its rate.
        steps = _few_steps(model)
        call = _planned(model, num_inference_steps=steps, speed="lossless")
        return (_draw(runner, call, _warming(f"{steps} steps"), progress),)
    speeds = model.speeds
    default = speeds.default_speed
    others = [speed for speed in speeds.allowed if speed != default]
    drawn = [_draw(runner, whole, _warming(f"the default speed, 1 of {len(others) + 1}"), progress)]
    for number, speed in enumerate(others, start=2):
        call = _planned(model, speed=speed)
        drawn.append(_draw(runner, call, _warming(f"speed {speed}, {number} of {len(others) + 1}"), progress))
    for _, record in drawn:
        if record.cache.enabled and not record.cache.engaged:
            logger.warning("the cache did not engage at speed %s: %s", record.cache.speed, record.cache.reason)
    return tuple(drawn)


def working(runner: Runner, model: PlannedModel, progress: Callable[[str], None]) -> PlannedModel:
    """Return the model with only the tasks that can draw a few steps; the log has the errors of the others.

    The model's own simplest task is not tried: the warm-up has drawn it.
    """
    variants = []
    for variant in model.variants:
        failing = set()
        for task in sorted(variant.traits.tasks & SERVED_TASKS):
            if variant is model and task is simplest_task(model):
                continue
            try:
                _try(runner, variant, task, progress)
            except Exception:
                logger.exception("%s does not run on these weights, and is not offered", task)
                failing.add(task)
        traits = replace(variant.traits, tasks=variant.traits.tasks - failing)
        if Input.LAST_IMAGE in traits.brought and not _takes_last_image(runner, variant, progress):
            others = traits.brought.keys() - {Input.LAST_IMAGE}
            traits = replace(traits, brought={each: traits.brought[each] for each in others})
        variants.append(replace(variant, traits=traits, siblings=()))
    own, *siblings = variants
    return replace(own, siblings=tuple(sibling for sibling in siblings if sibling.tasks))


def _takes_last_image(runner: Runner, model: PlannedModel, progress: Callable[[str], None]) -> bool:
    """Return whether image-to-video works with a last image; some weights take only a first one."""
    try:
        _try(runner, model, Task.IMAGE_TO_VIDEO, progress, last_image=True)
    except Exception:
        logger.exception("a last picture does not work on these weights, and is not offered")
        return False
    return True


def _try(
    runner: Runner, model: PlannedModel, task: Task, progress: Callable[[str], None], *, last_image: bool = False
) -> None:
    """Draw a few steps of a task; raises any error."""
    what = f"{task}{' with a last image' if last_image else ''}, {_few_steps(model)} steps"
    _draw(runner, short(model, task, last_image=last_image), _warming(what), progress)


def _draw(
    runner: Runner, call: ImageCall, stage: str, progress: Callable[[str], None]
) -> tuple[ImageCall, SampleRecord]:
    progress(stage)
    try:
        drawn = runner.sample(call, _Reports(stage, call, progress))
        check_finite(drawn.media)
    except ServingError as error:
        raise _failed(error) from error
    return call, drawn.record


def _warming(what: str) -> str:
    return f"warming up with one picture ({what})"


class _Reports:
    """Watch that reports an image's step, at most every `REPORT_PROGRESS_S` seconds."""

    cancelled = False

    def __init__(self, what: str, call: ImageCall, progress: Callable[[str], None]) -> None:
        self._what = what
        self._steps = call.num_inference_steps
        self._progress = progress
        self._last_reported = time.monotonic()

    def progress(self, done: int, cached: int) -> None:
        if time.monotonic() - self._last_reported >= REPORT_PROGRESS_S:
            self._last_reported = time.monotonic()
            self._progress(f"{self._what}, step {done} of {self._steps}")

    def preview(self, done: int, take: TakePreview) -> None:
        pass


def _few_steps(model: PlannedModel) -> int:
    return max(TRIAL_STEPS, model.traits.steps.least)


def short(
    model: PlannedModel,
    task: Task | None = None,
    *,
    last_image: bool = False,
    pixels: int | None = None,
    scheduler: str | None = None,
    guided: bool = False,
) -> ImageCall:
    """Return a call without a cache, of the fewest steps and frames, and of at most `pixels` pixels.

    It is for trials of the forward pass, not for measurements.

    Args:
        guided: turn guidance on, where the model has any.
    """
    fields = {"speed": "lossless", "num_inference_steps": _few_steps(model), "num_frames": least_frames(model)}
    if guided:
        fields |= guiding(model)
    return _planned(model, task, last_image=last_image, pixels=pixels, scheduler=scheduler, **fields)


def _planned(model: PlannedModel, task: Task | None = None, **fields: Any) -> ImageCall:
    if not model.traits.takes("num_inference_steps"):
        fields.pop("num_inference_steps", None)
    try:
        request, inputs = example_of(model, task, **fields)
        return plan(resolve(request, replace(model, profiles="none")), inputs).fitted().call
    except ServingError as error:
        raise _failed(error) from error


def _failed(error: ServingError) -> LoadError:
    return LoadError(f"a request with the defaults fails: {error.message}")
