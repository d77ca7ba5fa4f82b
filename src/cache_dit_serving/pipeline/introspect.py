"""The traits of a loaded pipeline, read from its class, signature and configuration, never from its path."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from cache_dit_serving.errors import LoadError
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.planning.tasks import tasks_of
from cache_dit_serving.planning.traits import GuidanceTraits, PipelineTraits, SizeTraits, StepTraits

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

USUAL_SIDE = 1024
"""Pixels; what text-to-image pipelines fall back to that name no size of their own (Z-Image)."""
USUAL_STEPS = 50
LEAST_MULTIPLE = 16
"""Pixels; every family of diffusers 0.42 takes it, or a multiple of it."""


def traits_of(pipe: DiffusionPipeline, *, separate_cfg: bool = False) -> PipelineTraits:
    """Read the traits of a pipeline of any diffusers 0.42 class.

    Raises:
        LoadError: it makes nothing that this server knows.
    """
    signature = inspect.signature(type(pipe).__call__).parameters
    output = output_of(type(pipe))
    steps = signature.get("num_inference_steps")
    transformer = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    config: Mapping[str, Any] = getattr(transformer, "config", None) or {}
    scheduler = getattr(pipe, "scheduler", None)
    parameters = frozenset(signature) - {"self", "args", "kwargs"}
    set_timesteps = getattr(scheduler, "set_timesteps", None)
    if set_timesteps is None or "sigmas" not in inspect.signature(set_timesteps).parameters:
        parameters -= {"sigmas"}  # the call takes them, and raises (PixArt with its own scheduler)
    sample_size = getattr(pipe, "default_sample_size", None) or config.get("sample_size")
    scale = int(getattr(pipe, "vae_scale_factor", 1))
    return PipelineTraits(
        pipeline_class=type(pipe).__name__,
        tasks=tasks_of(signature, output.kind, type(pipe).__name__),
        makes=output.kind,
        parameters=parameters,
        sizes=SizeTraits(
            multiple=_size_multiple(pipe, config),
            default_side=sample_size * scale if isinstance(sample_size, int) else USUAL_SIDE,
        ),
        steps=StepTraits(
            default=steps.default if steps and isinstance(steps.default, int) else USUAL_STEPS,
            # With a terminal shift (Qwen) the one sigma of a single step is divided by zero.
            least=2 if getattr(getattr(scheduler, "config", None), "shift_terminal", None) else 1,
            flow_matching=type(scheduler).__name__.startswith("FlowMatch"),
        ),
        guidance=GuidanceTraits(
            default_scale=_default(signature, "guidance_scale"),
            default_true_cfg_scale=_default(signature, "true_cfg_scale"),
            guides_above=_guides_above(pipe),
            # Families with true_cfg_scale (Flux, Qwen) only embed guidance_scale, and ignore it without an embedding.
            honours_scale="guidance_scale" in signature
            and not ("true_cfg_scale" in signature and config.get("guidance_embeds", True) is False),
            separate_cfg=separate_cfg,
        ),
    )


class OutputFields(NamedTuple):
    """Where a pipeline's answer holds what it made."""

    kind: MediaKind
    field: str
    sound_field: str | None
    """Of the sound that belongs to a clip."""


KINDS = {
    "images": MediaKind.PICTURE,
    "image": MediaKind.PICTURE,
    "frames": MediaKind.CLIP,
    "video": MediaKind.CLIP,
    "audios": MediaKind.SOUND,
}
"""By the field of an output class."""


def output_of(cls: type[DiffusionPipeline]) -> OutputFields:
    """What a pipeline of this class makes, by the output class that its call names.

    Raises:
        LoadError: its call names none, or one with fields that this server does not know.
    """
    from diffusers.utils import BaseOutput

    call = inspect.unwrap(cls.__call__)
    for name in call.__code__.co_names:
        output = call.__globals__.get(name)
        if isinstance(output, type) and issubclass(output, BaseOutput):
            fields = [field.name for field in dataclasses.fields(output)]
            found = next((field for field in fields if field in KINDS), None)
            if found is not None:
                sound = next((field for field in fields if field in ("audio", "sound")), None)
                return OutputFields(KINDS[found], found, sound)
    raise LoadError(f"{cls.__name__} makes neither pictures nor video nor audio, as far as its class says")


def _default(signature: Mapping[str, inspect.Parameter], name: str) -> float | None:
    default = signature[name].default if name in signature else None
    return float(default) if isinstance(default, int | float) else None


def _guides_above(pipe: DiffusionPipeline) -> float:
    """Ask the pipeline's own property, as its call does, at scales on both sides of the two thresholds there are."""
    if not hasattr(type(pipe), "do_classifier_free_guidance"):
        return 1.0
    try:
        for scale, threshold in ((0.5, 0.0), (1.5, 1.0)):
            pipe._guidance_scale = scale
            if pipe.do_classifier_free_guidance:
                return threshold
    except (AttributeError, TypeError):
        return 1.0  # it depends on more than the scale
    finally:
        del pipe._guidance_scale
    return math.inf


def _size_multiple(pipe: DiffusionPipeline, config: Mapping[str, Any]) -> int:
    """Pixels per latent, times the latents per token; families that hide the latter (Z-Image) take 16."""
    scale = int(getattr(pipe, "vae_scale_factor", 8))
    patch = config.get("patch_size", 1)
    packed = 2 if hasattr(pipe, "_pack_latents") else 1
    return max(LEAST_MULTIPLE, scale * max(patch if isinstance(patch, int) else 1, packed))
