"""The loaded model under its configuration, as planning sees it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cache_dit_serving.caching.speeds import SpeedLadder
from cache_dit_serving.config.settings import Limits, RequestDefaults
from cache_dit_serving.planning.traits import PipelineTraits


@dataclass(frozen=True)
class PlannedModel:
    traits: PipelineTraits
    defaults: RequestDefaults
    limits: Limits
    speeds: SpeedLadder
    tolerant: bool = False
    """Whether a field that the model cannot honour is ignored and reported, not refused."""

    def corrected(self, passes: int) -> PlannedModel:
        """The same model whose guidance makes `passes` forward passes a step, counted where the plan was wrong."""
        guidance = replace(self.traits.guidance, separate_cfg=passes == 2)
        return replace(self, traits=replace(self.traits, guidance=guidance))
