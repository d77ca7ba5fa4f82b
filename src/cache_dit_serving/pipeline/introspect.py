"""Traits of a loaded pipeline, read from its class, signature and configuration, never from its path."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from cache_dit_serving.errors import LoadError
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.pipeline.arguments import extra_arguments_of, longest_sequence
from cache_dit_serving.pipeline.output import audio_rate_of, output_of
from cache_dit_serving.planning.families import component_of, family_of
from cache_dit_serving.planning.tasks import PARAMETERS, SOUND_LENGTHS, WORDS, Input, tasks_of
from cache_dit_serving.planning.traits import (
    AudioTraits,
    ClassTraits,
    GuidanceTraits,
    PipelineTraits,
    SequenceTraits,
    SizeTraits,
    StepTraits,
    StrengthTraits,
    VideoTraits,
)
from cache_dit_serving.schemas.request import GenerateRequest

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

USUAL_SIDE = 1024
"""Default width and height, px, of text-to-image pipelines that name none (Z-Image)."""
USUAL_CLIP_SIZE = (832, 480)
"""Default (width, height), px, of text-to-video pipelines that name none (HunyuanVideo 1.5)."""
USUAL_FRAMES = 121
"""Default number of frames of pipelines whose signature names none (LTX-2)."""
USUAL_FPS = 16.0
"""Frames per second of videos from models without a parameter for the rate; cache_dit.serve used it for every clip."""
USUAL_LENGTH_S = 10.0
"""Default length, seconds, of sounds from models that name none."""
USUAL_STEPS = 50
SCHEDULE = tuple(range(10))
LEAST_MULTIPLE = 16
"""Least grid of widths and heights, px. The grid of every family of diffusers 0.42 is this or a multiple."""
SPATIAL = ("vae_scale_factor_spatial", "vae_spatial_scale_factor", "vae_spatial_compression_ratio")
TEMPORAL = ("vae_scale_factor_temporal", "vae_temporal_scale_factor", "vae_temporal_compression_ratio")
"""Attributes of video pipelines for the frames of a latent, and (`SPATIAL`) its pixels; a family has one of each."""


def traits_of(pipe: DiffusionPipeline, *, guided_passes: int = 1) -> PipelineTraits:
    """Read the traits of a pipeline of any diffusers 0.42 class.

    Args:
        guided_passes: forward passes per step with guidance, which the class does not show.

    Raises:
        LoadError: the pipeline makes no kind of output that this server knows.
    """
    signature = inspect.signature(type(pipe).__call__).parameters
    output, family = output_of(type(pipe)), family_of(type(pipe).__name__)
    transformer = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    config: Mapping[str, Any] = getattr(transformer, "config", None) or {}
    scheduler = getattr(pipe, "scheduler", None)
    parameters = frozenset(signature) - {"self", "args", "kwargs"}
    set_timesteps = getattr(scheduler, "set_timesteps", None)
    if set_timesteps is None or "sigmas" not in inspect.signature(set_timesteps).parameters:
        parameters -= {"sigmas"}  # the call takes them, and raises (PixArt with its own scheduler)
    if hasattr(type(pipe), "do_classifier_free_guidance"):
        parameters -= {"true_cfg_scale"}  # Chroma's inpaint class has it in its signature, but guides by guidance_scale
    return PipelineTraits(
        pipeline_class=type(pipe).__name__,
        tasks=tasks_of(signature, output.kind, type(pipe).__name__),
        makes=output.kind,
        parameters=parameters,
        sizes=_sizes(pipe, signature, config, output.kind),
        video=_video(pipe, signature, config) if output.kind is MediaKind.VIDEO else None,
        heard=output.audio_field is not None and audio_rate_of(pipe) is not None,
        audio=_audio(pipe, signature, config) if output.kind is MediaKind.AUDIO else None,
        brought=_brought(signature),
        several_images=family.several_images,
        classes=_classes(pipe, signature, config),
        strength=_strength(type(pipe), signature),
        steps=StepTraits(
            default=_steps(signature),
            # With a terminal shift (Qwen) a schedule of a single step divides by zero.
            least=2 if getattr(getattr(scheduler, "config", None), "shift_terminal", None) else 1,
            flow_matching=type(scheduler).__name__.startswith("FlowMatch"),
        ),
        guidance=GuidanceTraits(
            default_scale=_default(signature, "guidance_scale"),
            default_true_cfg_scale=_default(signature, "true_cfg_scale"),
            guides_above=_guides_above(pipe),
            # Families with true_cfg_scale (Flux, Qwen) only embed guidance_scale, and ignore it without an embedding.
            honours_scale="guidance_scale" in signature
            and not ("true_cfg_scale" in parameters and config.get("guidance_embeds", True) is False),
            guided_passes=guided_passes,
            needs_negative_prompt=family.needs_negative_prompt,
        ),
        sequence=SequenceTraits(default=_whole(signature, "max_sequence_length"), most=longest_sequence(type(pipe))),
        extra_arguments=extra_arguments_of(type(pipe), frozenset(GenerateRequest.model_fields)),
    )


def _default(signature: Mapping[str, inspect.Parameter], name: str) -> float | None:
    default = signature[name].default if name in signature else None
    return float(default) if isinstance(default, int | float) else None


def _whole(signature: Mapping[str, inspect.Parameter], name: str) -> int | None:
    default = _default(signature, name)
    return None if default is None else int(default)


def _guides_above(pipe: DiffusionPipeline) -> float:
    """Return the guidance_scale above which the pipeline guides: 0, 1 (also if not known), or infinity for never.

    Reads the pipeline's own property, as its call does, at a scale above each of the two known thresholds.
    """
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


def _sizes(
    pipe: DiffusionPipeline, signature: Mapping[str, inspect.Parameter], config: Mapping[str, Any], makes: MediaKind
) -> SizeTraits:
    sample_size = getattr(pipe, "default_sample_size", None) or config.get("sample_size")
    scale = _first(pipe, "vae_scale_factor", *SPATIAL) or _pixels_of_latent(pipe)
    usual = USUAL_CLIP_SIZE if makes is MediaKind.VIDEO else (USUAL_SIDE, USUAL_SIDE)

    def default(side: str, usual_side: int) -> int:
        own = _default(signature, side) or getattr(pipe, f"default_{side}", None)
        if own is not None:
            return int(own)
        sample = config.get(f"sample_{side}") or sample_size
        return sample * scale if isinstance(sample, int) else usual_side

    return SizeTraits(_size_multiple(pipe, config), default("width", usual[0]), default("height", usual[1]))


def _pixels_of_latent(pipe: DiffusionPipeline) -> int:
    """Return the pixels per latent of a pipeline without that attribute (DiT).

    Each block of the autoencoder but the last halves a side.
    """
    blocks = getattr(getattr(getattr(pipe, "vae", None), "config", None), "block_out_channels", (1,))
    return int(2 ** (len(blocks) - 1))


def _size_multiple(pipe: DiffusionPipeline, config: Mapping[str, Any]) -> int:
    """Return the grid of widths and heights, px: pixels per latent times latents per token.

    At least 16, the grid of families that do not show their latents per token (Z-Image).
    """
    scale = _first(pipe, "vae_scale_factor", *SPATIAL) or 8
    patch = config.get("patch_size", 1)
    if isinstance(patch, list | tuple):  # of frames, rows and columns
        patch = patch[-1]
    packed = 2 if hasattr(pipe, "_pack_latents") else 1
    return max(LEAST_MULTIPLE, scale * max(patch if isinstance(patch, int) else 1, packed))


def _video(
    pipe: DiffusionPipeline, signature: Mapping[str, inspect.Parameter], config: Mapping[str, Any]
) -> VideoTraits:
    of_latent = _first(pipe, *TEMPORAL) or 1
    latents_of_chunk = _whole(signature, "num_latent_frames_per_chunk")  # Helios
    chunk = (latents_of_chunk - 1) * of_latent + 1 if latents_of_chunk else None
    multiple = chunk or of_latent * component_of(getattr(pipe, "vae", None)).latents_decoded_together
    frames_parameter = next((name for name in ("frames", "num_frames") if name in signature), None)
    default = (_default(signature, frames_parameter) if frames_parameter else None) or config.get("sample_frames")
    family = family_of(type(pipe).__name__)
    if family.counts_latent_frames and default:
        default *= multiple
    default_frames, least, most = int(default or USUAL_FRAMES), None, None
    if latents_of_chunks := config.get("chunk_partition"):  # AnyFlowFAR makes videos of just these chunks
        least = most = default_frames = (sum(latents_of_chunks) - 1) * of_latent + 1
    if family.decodes_tiles_alone:
        least, multiple = pipe.vae.kernel[0], pipe.vae.stride[0]
    fps_parameter = next((name for name in ("frame_rate", "fps") if name in signature), None)
    return VideoTraits(
        default_frames=default_frames,
        multiple=multiple,
        # The family's default shows whether its first frame is separate (81 = 4 x 20 + 1) or not (88 = 4 x 22).
        remainder=default_frames % multiple,
        frames_parameter=frames_parameter,
        fps_parameter=fps_parameter,
        default_fps=(_default(signature, fps_parameter) if fps_parameter else None) or USUAL_FPS,
        least=least,
        most=most,
        chunk=chunk,
    )


def _steps(signature: Mapping[str, inspect.Parameter]) -> int:
    if (levels := signature.get("pyramid_num_inference_steps_list")) is not None:
        return sum(levels.default)  # HeliosPyramid: the steps of each resolution
    return _whole(signature, "num_inference_steps") or USUAL_STEPS


def _audio(
    pipe: DiffusionPipeline, signature: Mapping[str, inspect.Parameter], config: Mapping[str, Any]
) -> AudioTraits:
    parameter, rate = next((name for name in SOUND_LENGTHS if name in signature), None), audio_rate_of(pipe)
    if parameter is None or rate is None:
        raise LoadError(f"{type(pipe).__name__} names neither how long its sounds are nor at which rate they come")
    # StableAudio always denoises the number of latents in its configuration, and cuts the sound.
    always_whole = parameter == "audio_end_in_s"
    most = config["sample_size"] * pipe.vae.hop_length / rate if always_whole else None
    most = most or getattr(pipe, "max_wav_duration", None)
    return AudioTraits(
        length_parameter=parameter,
        default_length_s=_default(signature, parameter) or most or USUAL_LENGTH_S,
        most_length_s=most,
        rate=rate,
        always_whole=always_whole,
    )


def _brought(signature: Mapping[str, inspect.Parameter]) -> dict[Input, str]:
    """Return the call's parameter for each kind of input that a request may bring."""
    if "control_mask" in signature:  # inpaints its control image
        return {Input.IMAGE: "control_image", Input.MASK: "control_mask"}
    return {
        each: next(name for name in signature if name in names)
        for each, names in PARAMETERS.items()
        if each not in WORDS and names & signature.keys()
    }


def _classes(
    pipe: DiffusionPipeline, signature: Mapping[str, inspect.Parameter], config: Mapping[str, Any]
) -> ClassTraits | None:
    parameter = next((name for name in signature if name in PARAMETERS[Input.CLASS_LABELS]), None)
    if parameter is None:
        return None
    # The embedding has one class more, "no class", which guidance uses.
    return ClassTraits(parameter, config.get("num_embeds_ada_norm") or 1000, getattr(pipe, "labels", {}))


def _strength(cls: type[DiffusionPipeline], signature: Mapping[str, inspect.Parameter]) -> StrengthTraits | None:
    """Return how a pipeline shortens its schedule by `strength`; None if it has no such parameter.

    Runs the pipeline's own `get_timesteps` on a schedule of ten steps.
    """
    get_timesteps = getattr(cls, "get_timesteps", None)
    if "strength" not in signature or "denoise_strength" in signature:
        return None  # LTXCondition's strength is that of its conditions
    if get_timesteps is None:  # aMUSEd
        return StrengthTraits(default=_default(signature, "strength") or 1.0, rounds_up=False)
    asked = {"num_inference_steps": 10, "strength": 0.55, "device": "cpu", "timesteps": SCHEDULE, "sigmas": SCHEDULE}
    known = inspect.signature(get_timesteps).parameters
    scheduler = SimpleNamespace(order=1, timesteps=SCHEDULE, set_begin_index=lambda index: None)
    *_, run = get_timesteps(SimpleNamespace(scheduler=scheduler), **{k: v for k, v in asked.items() if k in known})
    return StrengthTraits(default=_default(signature, "strength") or 1.0, rounds_up=run == 6)


def _first(pipe: DiffusionPipeline, *names: str) -> int | None:
    """Return the first of these attributes that a pipeline has; None if it has none."""
    return next((int(getattr(pipe, name)) for name in names if hasattr(pipe, name)), None)
