"""The loaded model under its configuration, as planning sees it."""

from __future__ import annotations

from dataclasses import dataclass

from cache_dit_serving.caching.speeds import SpeedLadder
from cache_dit_serving.config.settings import Limits, RequestDefaults
from cache_dit_serving.planning.traits import PipelineTraits


@dataclass(frozen=True)
class PlannedModel:
    traits: PipelineTraits
    defaults: RequestDefaults
    limits: Limits
    speeds: SpeedLadder
