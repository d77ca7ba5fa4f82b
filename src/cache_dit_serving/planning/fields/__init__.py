"""Fields of a request, one class each. Planning, `/capabilities` and the model's description iterate over them."""

from __future__ import annotations

from cache_dit_serving.planning.fields.arguments import ExtraArgs, MaxSequenceLength
from cache_dit_serving.planning.fields.cache import CacheField, DeadlineField, SpeedField
from cache_dit_serving.planning.fields.clip import Fps, NumFrames
from cache_dit_serving.planning.fields.field import PipelineField, RequestField
from cache_dit_serving.planning.fields.guidance import GuidanceScale, NegativePrompt, TrueCfgScale
from cache_dit_serving.planning.fields.images import NumImages, Seed
from cache_dit_serving.planning.fields.inputs import INPUT_FIELDS, FitField, Strength
from cache_dit_serving.planning.fields.loras import Loras
from cache_dit_serving.planning.fields.output import (
    AudioFormat,
    ImageFormat,
    ImageQuality,
    IncludeStats,
    OutputDir,
    OutputFormat,
    VideoFormat,
)
from cache_dit_serving.planning.fields.priority import Priority
from cache_dit_serving.planning.fields.profile import Profile
from cache_dit_serving.planning.fields.prompt import ClassLabel, Prompt
from cache_dit_serving.planning.fields.size import Height, Width
from cache_dit_serving.planning.fields.sound import AudioLength
from cache_dit_serving.planning.fields.steps import NumInferenceSteps, Sigmas
from cache_dit_serving.planning.model import PlannedModel

FIELDS: tuple[RequestField, ...] = (
    Prompt(),
    ClassLabel(),
    NegativePrompt(),
    Width(),
    Height(),
    NumInferenceSteps(),
    GuidanceScale(),
    TrueCfgScale(),
    Sigmas(),
    MaxSequenceLength(),
    ExtraArgs(),
    Loras(),
    *INPUT_FIELDS,
    Strength(),
    FitField(),
    NumFrames(),
    Fps(),
    AudioLength(),
    Seed(),
    NumImages(),
    IncludeStats(),
    Profile(),
    OutputFormat(),
    OutputDir(),
    ImageFormat(),
    ImageQuality(),
    VideoFormat(),
    AudioFormat(),
    SpeedField(),
    CacheField(),
    Priority(),
    DeadlineField(),
)
"""All fields, in the order in which they are checked and listed."""
PIPELINE_FIELDS = frozenset(field.name for field in FIELDS if isinstance(field, PipelineField))
"""Names of the fields that are arguments of the pipeline's call."""


def accepted_fields(model: PlannedModel) -> list[RequestField]:
    """Return the fields that a pipeline honours."""
    return [field for field in FIELDS if field.accepted(model)]


def offered_fields(model: PlannedModel) -> list[tuple[RequestField, PlannedModel]]:
    """Return each field that any of the model's pipelines honours, with the first that does."""
    found = [(field, next((each for each in model.variants if field.accepted(each)), None)) for field in FIELDS]
    return [(field, variant) for field, variant in found if variant is not None]
