"""What a loaded pipeline can do, read from its class and signature, never from its path."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TEXT_TO_IMAGE = "text-to-image"
USUAL_SIDE = 1024
"""Pixels; what text-to-image pipelines fall back to that name no size of their own (Z-Image)."""
LEAST_MULTIPLE = 16
"""Pixels; every family of diffusers 0.42 takes it, or a multiple of it."""


@dataclass(frozen=True)
class PipelineTraits:
    """What requests need to know of a pipeline."""

    pipeline_class: str
    task: str
    parameters: frozenset[str]
    """Names that the pipeline's call takes."""
    size_multiple: int
    """Width and height must be multiples of this, in pixels."""
    default_side: int
    """The pipeline's own width and height, in pixels, where it takes them."""
    default_num_inference_steps: int
    default_guidance_scale: float | None
    default_true_cfg_scale: float | None
    guides_above: float
    """The guidance_scale above which the pipeline predicts twice; infinite for weights that never do."""
    honours_guidance_scale: bool
    separate_cfg: bool
    """Whether the family makes the second prediction in a forward pass of its own: cache-dit's default for it, until
    a count of the passes says otherwise."""
    flow_matching: bool
    """Whether its noise levels (sigmas) lie in (0, 1]."""
    least_num_inference_steps: int

    def takes(self, parameter: str) -> bool:
        return parameter in self.parameters


def traits_of(pipe: DiffusionPipeline, *, separate_cfg: bool = False) -> PipelineTraits:
    """Read the traits of a pipeline of any diffusers 0.42 class."""
    signature = inspect.signature(type(pipe).__call__).parameters
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
        task=task_of(signature),
        parameters=parameters,
        size_multiple=_size_multiple(pipe, config),
        default_side=sample_size * scale if isinstance(sample_size, int) else USUAL_SIDE,
        default_num_inference_steps=steps.default if steps and isinstance(steps.default, int) else 50,
        default_guidance_scale=_default(signature, "guidance_scale"),
        default_true_cfg_scale=_default(signature, "true_cfg_scale"),
        guides_above=_guides_above(pipe),
        # Families with true_cfg_scale (Flux, Qwen) only embed guidance_scale, and ignore it without an embedding.
        honours_guidance_scale="guidance_scale" in signature
        and not ("true_cfg_scale" in signature and config.get("guidance_embeds", True) is False),
        separate_cfg=separate_cfg,
        flow_matching=type(scheduler).__name__.startswith("FlowMatch"),
        # With a terminal shift (Qwen) the one sigma of a single step is divided by zero.
        least_num_inference_steps=2 if getattr(getattr(scheduler, "config", None), "shift_terminal", None) else 1,
    )


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


def task_of(signature: Mapping[str, inspect.Parameter]) -> str:
    """The task by what the call takes; the order of the rules matters, the first that fits wins."""
    if "num_waveforms_per_prompt" in signature:
        return "text-to-audio"
    if {"num_frames", "num_videos_per_prompt", "video"} & signature.keys():
        if "video" in signature:
            return "video-to-video"
        image = signature.get("image")
        return "image-to-video" if image and image.default is inspect.Parameter.empty else "text-to-video"
    if "class_labels" in signature:
        return "class-conditional"
    rules = (("mask_image", "inpaint"), ("control_image", "control"), ("strength", "img2img"))
    for parameter, task in rules:
        if parameter in signature:
            return task
    for parameter in ("image", "images", "input_images"):
        if parameter in signature:
            required = signature[parameter].default is inspect.Parameter.empty
            # FLUX.2's pipeline and its like edit when given pictures and draw from text when not.
            return "image-edit" if required else TEXT_TO_IMAGE
    return TEXT_TO_IMAGE if "prompt" in signature else "unconditional"


def _size_multiple(pipe: DiffusionPipeline, config: Mapping[str, Any]) -> int:
    """Pixels per latent, times the latents per token; families that hide the latter (Z-Image) take 16."""
    scale = int(getattr(pipe, "vae_scale_factor", 8))
    patch = config.get("patch_size", 1)
    packed = 2 if hasattr(pipe, "_pack_latents") else 1
    return max(LEAST_MULTIPLE, scale * max(patch if isinstance(patch, int) else 1, packed))
