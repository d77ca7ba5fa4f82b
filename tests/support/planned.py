"""Requests and their calls on a model of given traits, without a pipeline."""

from __future__ import annotations

from typing import Any

from cache_dit_serving.caching.checks import CacheSupport
from cache_dit_serving.caching.speeds import SpeedLadder
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.media.inputs import NO_INPUTS, Inputs
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.planned import Planned
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.planning.traits import PipelineTraits
from cache_dit_serving.schemas.request import GenerateRequest


def request(**fields: Any) -> GenerateRequest:
    return GenerateRequest(**{"prompt": "a cat", **fields})


def model_of(traits: PipelineTraits, settings: Settings, *, tolerant: bool = False) -> PlannedModel:
    support = CacheSupport({"Transformer.blocks": 12}, {})
    steps = 4 if settings.cache else traits.steps.default
    speeds = SpeedLadder(settings.cache, settings.speeds, support, steps)
    return PlannedModel(traits, settings.defaults, settings.limits, speeds, tolerant)


def planned(
    asked: GenerateRequest,
    traits: PipelineTraits,
    settings: Settings,
    *,
    tolerant: bool = False,
    inputs: Inputs = NO_INPUTS,
) -> Planned:
    return plan(resolve(asked, model_of(traits, settings, tolerant=tolerant)), inputs)
