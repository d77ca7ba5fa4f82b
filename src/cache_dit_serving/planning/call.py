"""A call of a pipeline for one output: all that a runner reads of a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cache_dit_serving.caching.speeds import CacheChoice
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.planning.loras import LoraChoice
from cache_dit_serving.planning.model import AskedToProfile


@dataclass(frozen=True)
class ClipSpec:
    """Length and speed of a clip."""

    num_frames: int
    fps: float
    """Frames a second at which the clip is shown."""


@dataclass(frozen=True)
class ImageCall:
    """One output of a request, as a runner draws it. Every field reaches the ranks of a model on several GPUs."""

    arguments: dict[str, Any]
    """Arguments of the pipeline's call, pictures at the drawn size among them; without the generator, the callback and
    the output type."""
    seed: int
    cache: CacheChoice
    num_inference_steps: int
    """Denoising steps that run; a strength leaves some of those of `arguments` out."""
    passes: int
    """Forward passes a step: 2 where guidance takes one of its own."""
    pipeline_class: str
    """Class of the pipeline that runs it: the loaded one's, or a sibling's of the same weights."""
    pixels: int
    """Width x height of an image; for a clip, times its frames; for a sound, its samples."""
    loras: tuple[LoraChoice, ...] = ()
    """Adapters in the order in which they are added, without the fused ones."""
    clip: ClipSpec | None = None
    """Set where the pipeline makes a clip."""
    makes: MediaKind = MediaKind.PICTURE
    profile: AskedToProfile = AskedToProfile.NO
    caller: str = ""
    """Name of the sender. Embeddings of one caller's prompts are kept apart from another's."""
