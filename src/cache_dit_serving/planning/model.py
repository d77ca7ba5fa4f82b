"""The loaded model under its configuration, as planning sees it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

from cache_dit_serving.caching.checks import CacheSupport
from cache_dit_serving.caching.speeds import SpeedLadder
from cache_dit_serving.config.settings import Limits, RequestDefaults, Settings
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.planning.loras import LoraTraits
from cache_dit_serving.planning.tasks import SERVED_TASKS, Task
from cache_dit_serving.planning.traits import PipelineTraits

USUAL_PIXEL_STEPS = {
    MediaKind.PICTURE: 1024 * 1024 * 100 * 4,
    MediaKind.CLIP: 1280 * 720 * 129 * 50,
}
"""Pixels x frames x steps x outputs of one request. Of sound, the length is bounded."""


def usual_steps(traits: PipelineTraits, defaults: RequestDefaults) -> int:
    """num_inference_steps by the configuration, or else by the pipeline."""
    return defaults.num_inference_steps or traits.steps.default


class AskedToProfile(Enum):
    """Who wants a trace of a call's outputs."""

    NO = "no"
    BY_REQUEST = "by request"
    BY_OPERATOR = "by operator"


@dataclass(frozen=True)
class PlannedModel:
    traits: PipelineTraits
    defaults: RequestDefaults
    limits: Limits
    speeds: SpeedLadder
    tolerant: bool = False
    """Whether a field that the model cannot honour is ignored and reported, not refused."""
    loras: tuple[LoraTraits, ...] = ()
    """Those that are loaded, in the configuration's order."""
    profiles: Literal["none", "asked", "all"] = "none"
    """Of which outputs traces are written."""
    siblings: tuple[PlannedModel, ...] = ()
    """Pipelines of the same weights for further tasks."""

    @property
    def variants(self) -> tuple[PlannedModel, ...]:
        """The model's own pipeline and its siblings."""
        return (self, *self.siblings)

    @property
    def tasks(self) -> list[Task]:
        """Of all of them, those that this version has requests for."""
        return sorted(task for variant in self.variants for task in variant.traits.tasks & SERVED_TASKS)

    @property
    def default_step_count(self) -> int:
        """num_inference_steps of a request that leaves it out."""
        return usual_steps(self.traits, self.defaults)

    @property
    def max_pixel_steps(self) -> int | None:
        """Bound on the work of one request: the operator's, or what is usual for the kind of output; None for sound."""
        return self.limits.max_pixel_steps or USUAL_PIXEL_STEPS.get(self.traits.makes)

    def corrected(self, passes: int) -> PlannedModel:
        """The same model whose guidance makes `passes` forward passes a step, counted where the plan was wrong.

        Its siblings run the same transformer, and guide as it does.
        """
        guidance = replace(self.traits.guidance, separate_cfg=passes == 2)
        siblings = tuple(sibling.corrected(passes) for sibling in self.siblings)
        return replace(self, traits=replace(self.traits, guidance=guidance), siblings=siblings)


def planned(
    settings: Settings, traits: PipelineTraits, support: CacheSupport, loras: tuple[LoraTraits, ...]
) -> PlannedModel:
    """A loaded pipeline under a configuration."""
    speeds = SpeedLadder(settings.cache, settings.speeds, support, usual_steps(traits, settings.defaults))
    tolerant = settings.server.unsupported_fields == "warn"
    profiles = settings.profiling.requests
    return PlannedModel(traits, settings.defaults, settings.limits, speeds, tolerant, loras, profiles)
