"""Trials of the schedulers that requests may choose: a few steps with each, on each task."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from dataclasses import replace

from cache_dit_serving.media.images import check_finite
from cache_dit_serving.pipeline.failure import summary
from cache_dit_serving.pipeline.protocol import Runner, TakePreview
from cache_dit_serving.pipeline.warm_up import short
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.planning.samplers import Sampler
from cache_dit_serving.planning.tasks import SERVED_TASKS

logger = logging.getLogger(__name__)


def drawing_samplers(runner: Runner, model: PlannedModel, progress: Callable[[str], None]) -> PlannedModel:
    """Return the model with only the schedulers that draw each of its tasks; the log has the errors of the others.

    Diffusers hands some schedulers noise levels or a shift that they do not take, which only a call shows.
    """
    own, *siblings = model.variants
    # A scheduler that only a sibling lacks is of use all the same: nobody needs to be warned.
    return replace(
        _with_drawing(runner, replace(own, siblings=()), progress, logging.WARNING),
        siblings=tuple(_with_drawing(runner, each, progress, logging.INFO) for each in siblings),
    )


def _with_drawing(runner: Runner, model: PlannedModel, progress: Callable[[str], None], level: int) -> PlannedModel:
    samplers = model.traits.samplers
    if samplers is None or not samplers.offered:
        return model
    refused = {}
    for sampler in samplers.offered:
        if (reason := _failure(runner, model, sampler, progress)) is not None:
            logger.log(
                level, "%s is not offered the scheduler %s: %s", model.traits.pipeline_class, sampler.name, reason
            )
            refused[sampler.name] = reason
    return replace(model, traits=replace(model.traits, samplers=samplers.without(refused)))


def _failure(runner: Runner, model: PlannedModel, sampler: Sampler, progress: Callable[[str], None]) -> str | None:
    """Return why a scheduler does not draw all tasks of a pipeline, a phrase for callers; None if it does."""
    for task in sorted(model.traits.tasks & SERVED_TASKS):
        progress(f"trying the scheduler {sampler.name} in a few steps ({task})")
        call, steps = short(model, task, scheduler=sampler.name), _Steps()
        try:
            check_finite(runner.sample(call, steps).media)
        except Exception as error:
            logger.debug("the trial of scheduler %s failed", sampler.name, exc_info=True)
            return why_it_fails(error, sampler, model.traits.pipeline_class)
        if steps.done != call.num_inference_steps:
            return f"{sampler.scheduler_class} makes {steps.done} steps where {call.num_inference_steps} are planned"
    return None


def why_it_fails(error: BaseException, sampler: Sampler, pipeline_class: str) -> str:
    """Return the reason for a failed trial of a scheduler, a phrase for callers."""
    if traceback.extract_tb(error.__traceback__)[-1].name == "retrieve_timesteps":
        lacking = "sigmas" if isinstance(error, ValueError) else "mu"
        return f"{sampler.scheduler_class}.set_timesteps takes no {lacking}, which {pipeline_class} passes"
    return f"{pipeline_class} fails with {sampler.scheduler_class} ({summary(error)})"


class _Steps:
    """Watch that counts the steps of one output."""

    cancelled = False

    def __init__(self) -> None:
        self.done = 0

    def progress(self, done: int, cached: int) -> None:
        self.done = done

    def preview(self, done: int, take: TakePreview) -> None:
        pass
