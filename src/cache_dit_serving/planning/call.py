"""A call of a pipeline for one output: all that a runner reads of a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cache_dit_serving.caching.speeds import CacheChoice
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.planning.loras import LoraChoice
from cache_dit_serving.planning.model import AskedToProfile
from cache_dit_serving.planning.samplers import SamplerChoice


@dataclass(frozen=True)
class VideoSpec:
    """Length and speed of a clip."""

    num_frames: int
    fps: float
    """Frame rate of the encoded video, frames per second."""


@dataclass(frozen=True)
class ImageCall:
    """One output of a request, as a runner draws it. Every field reaches the ranks of a model on several GPUs."""

    arguments: dict[str, Any]
    """Arguments of the pipeline's call, images at the drawn size among them; without the generator, the callback and
    the output type."""
    seed: int
    cache: CacheChoice
    num_inference_steps: int
    """Number of denoising steps that run, one for each prediction of the noise. With a strength it is less than the
    argument `num_inference_steps`, with Heun's method nearly twice that."""
    passes: int
    """Forward passes per step: 2 if guidance takes a pass of its own."""
    pipeline_class: str
    """Class of the pipeline that runs it: the loaded one, or a sibling with the same weights."""
    pixels: int
    """Size of the output: width x height of an image, width x height x frames of a video, samples of a sound."""
    loras: tuple[LoraChoice, ...] = ()
    """LoRAs to draw with, in the order in which they are added. Fused ones are not listed."""
    sampler: SamplerChoice | None = None
    """Scheduler; None if the pipeline has none."""
    video: VideoSpec | None = None
    """Frames and frame rate; None if the output is not a clip."""
    makes: MediaKind = MediaKind.IMAGE
    profile: AskedToProfile = AskedToProfile.NO
    keep_floats: bool = False
    """Keep the output's floats, to measure them. Otherwise a pipeline that can gives bytes, a quarter of their size."""
    caller: str = ""
    """Name of the caller. The prompt cache is partitioned by it."""
