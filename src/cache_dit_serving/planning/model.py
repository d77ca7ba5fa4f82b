"""The loaded model and its configuration, reduced to the values that planning needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

from cache_dit_serving.caching.checks import CacheSupport
from cache_dit_serving.caching.settings import CacheOptions
from cache_dit_serving.caching.speed_settings import FloorSettings, Speed, SpeedsSettings
from cache_dit_serving.caching.speeds import SPEEDS, SpeedLadder
from cache_dit_serving.config.settings import Limits, RequestDefaults, Settings
from cache_dit_serving.errors import LoadError
from cache_dit_serving.media.kinds import KINDS
from cache_dit_serving.planning.loras import LoraTraits
from cache_dit_serving.planning.tasks import SERVED_TASKS, Task
from cache_dit_serving.planning.traits import PipelineTraits


def usual_steps(traits: PipelineTraits, defaults: RequestDefaults) -> int:
    """Return the default num_inference_steps: the configuration's, else the pipeline's."""
    return defaults.num_inference_steps or traits.steps.default


class AskedToProfile(Enum):
    """Reason for a profiler trace of a call."""

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
    """Ignore and report a field that the model cannot honour, instead of refusing the request."""
    loras: tuple[LoraTraits, ...] = ()
    """Offered LoRAs in the configuration's order."""
    profiles: Literal["none", "asked", "all"] = "none"
    """Outputs to trace: none, those of requests that ask for it, or all."""
    siblings: tuple[PlannedModel, ...] = ()
    """Pipelines that use the same weights for further tasks."""

    @property
    def variants(self) -> tuple[PlannedModel, ...]:
        """The model's own pipeline, then its siblings."""
        return (self, *self.siblings)

    @property
    def tasks(self) -> list[Task]:
        """Served tasks of all variants, sorted by name."""
        return sorted(task for variant in self.variants for task in variant.traits.tasks & SERVED_TASKS)

    @property
    def usual_steps(self) -> int:
        """num_inference_steps of a request with neither this field nor a cache."""
        return usual_steps(self.traits, self.defaults)

    @property
    def default_step_count(self) -> int:
        """num_inference_steps of a request with neither this field nor a speed."""
        return self.step_count_at(None, None)

    def step_count_at(self, speed: Speed | None, cache: CacheOptions | None) -> int:
        """Return num_inference_steps of a request without this field, at its speed."""
        return self.speeds.steps(speed, cache) or self.usual_steps

    @property
    def max_pixel_steps(self) -> int | None:
        """Maximum pixels x steps of one request: the operator's, or the default of the output's kind; None: none."""
        return self.limits.max_pixel_steps or KINDS[self.traits.makes].usual_pixel_steps

    def corrected(self, passes: int) -> PlannedModel:
        """Return the model whose guidance makes `passes` forward passes per step, after a count showed a wrong plan.

        The siblings are corrected too, because they run the same transformer.
        """
        guidance = replace(self.traits.guidance, guided_passes=passes)
        siblings = tuple(sibling.corrected(passes) for sibling in self.siblings)
        return replace(self, traits=replace(self.traits, guidance=guidance), siblings=siblings)


def planned(
    settings: Settings, traits: PipelineTraits, support: CacheSupport, loras: tuple[LoraTraits, ...]
) -> PlannedModel:
    """Combine a loaded pipeline's traits with the configuration.

    Raises:
        LoadError: the cache settings, the steps or the floors of a speed do not fit the model.
    """
    _check_steps_of_speeds(settings, traits)
    _check_floors(settings.speeds, traits)
    speeds = SpeedLadder(settings.cache, settings.speeds, support, usual_steps(traits, settings.defaults))
    tolerant = settings.server.unsupported_fields == "warn"
    profiles = settings.profiling.requests
    return PlannedModel(traits, settings.defaults, settings.limits, speeds, tolerant, loras, profiles)


def _check_steps_of_speeds(settings: Settings, traits: PipelineTraits) -> None:
    most = settings.limits.max_num_inference_steps
    for speed in SPEEDS[1:]:
        key, steps = f"speeds.{speed}.num_inference_steps", getattr(settings.speeds, speed).num_inference_steps
        if steps is None:
            continue
        if not traits.takes("num_inference_steps"):
            raise LoadError(f"{key}: {traits.pipeline_class} takes no num_inference_steps; leave it out")
        if steps < (least := traits.steps.least):
            raise LoadError(f"{key}: this model's scheduler needs at least {least} steps")
        if steps > most:
            raise LoadError(f"{key}: {steps} steps are more than limits.max_num_inference_steps, {most}")


def _check_floors(speeds: SpeedsSettings, traits: PipelineTraits) -> None:
    """Refuse floors by measures that the model's outputs do not have.

    Raises:
        LoadError: names the first one, and the measures that there are.
    """
    measures = KINDS[traits.makes].measures
    sections: dict[str, FloorSettings] = {"speeds.floors": speeds.floors}
    sections |= {f"speeds.{name}.floors": getattr(speeds, name).floors for name in SPEEDS[1:]}
    for section, floors in sections.items():
        if unfit := next((name for name in floors.given if name not in measures), None):
            raise LoadError(
                f"{section}.{unfit}: {traits.pipeline_class} makes outputs of the kind {traits.makes}, "
                f"which are measured by {', '.join(measures)}"
            )
