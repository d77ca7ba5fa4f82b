"""Traits of a loaded pipeline that planning needs. :mod:`pipeline.introspect` reads them from a pipeline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.planning.samplers import SamplerTraits
from cache_dit_serving.planning.tasks import Input, Task


@dataclass(frozen=True)
class SizeTraits:
    multiple: int
    """Grid of width and height, pixels."""
    default_width: int
    """The pipeline's default width, pixels."""
    default_height: int
    """The pipeline's default height, pixels."""


@dataclass(frozen=True)
class VideoTraits:
    default_frames: int
    """The pipeline's default number of frames."""
    multiple: int
    """Number of frames per latent frame."""
    remainder: int
    """Remainder of the number of frames: a video has `multiple` x k + `remainder` frames."""
    frames_parameter: str | None
    """Parameter of the number of frames; None if the input video determines it."""
    fps_parameter: str | None
    """Parameter of the frame rate; None if the model takes none."""
    default_fps: float
    """Default frame rate, frames per second."""
    least: int | None = None
    """Minimum number of frames that the autoencoder decodes; None: no bound."""
    most: int | None = None
    """Maximum number of frames that the weights make; None: no bound."""
    chunk: int | None = None
    """Number of frames denoised together. A longer video runs all steps once per chunk. None: no chunks."""

    def chunks(self, frames: int) -> int:
        """Return how many times the steps run for a video of `frames` frames."""
        return math.ceil(frames / self.chunk) if self.chunk else 1


@dataclass(frozen=True)
class AudioTraits:
    length_parameter: str
    """Parameter of the length in seconds."""
    default_length_s: float
    """The pipeline's default length, seconds."""
    most_length_s: float | None
    """Maximum length that the model makes, seconds; None if its class states no bound."""
    rate: int
    """Sample rate, samples per second."""
    always_whole: bool
    """True if the model always makes the maximum length and cuts it to the requested one."""


@dataclass(frozen=True)
class StrengthTraits:
    default: float
    """The pipeline's default strength."""
    rounds_up: bool
    """True if a fractional number of steps is rounded up."""

    def steps_run(self, num_inference_steps: int, strength: float) -> int:
        """Return how many steps of a schedule run, computed as in `get_timesteps` of diffusers 0.42."""
        if self.rounds_up:
            return num_inference_steps - int(
                num_inference_steps - min(num_inference_steps * strength, num_inference_steps)
            )
        return min(int(num_inference_steps * strength), num_inference_steps)


@dataclass(frozen=True)
class ClassTraits:
    """Classes of a class-conditional pipeline."""

    parameter: str
    """Parameter of the list of class numbers."""
    count: int
    """Number of classes; they are numbered from 0."""
    names: Mapping[str, int]
    """Class number by name; empty if the model has no names. Several names may denote one class."""


@dataclass(frozen=True)
class SequenceTraits:
    """Bounds on the tokens of a prompt."""

    default: int | None = None
    """The pipeline's default max_sequence_length; None if it takes none."""
    most: int | None = None
    """Maximum that its class accepts, tokens; None if it checks none."""


@dataclass(frozen=True)
class StepTraits:
    default: int
    """The pipeline's default num_inference_steps."""
    least: int
    """Minimum number of steps. The scheduler fails with fewer."""
    flow_matching: bool
    """True if the scheduler is flow matching: its noise levels (sigmas) lie in (0, 1]."""


@dataclass(frozen=True)
class GuidanceTraits:
    default_scale: float | None
    """The pipeline's default guidance_scale; None if it takes none."""
    default_true_cfg_scale: float | None
    """The pipeline's default true_cfg_scale; None if it takes none."""
    guides_above: float
    """guidance_scale above which the pipeline makes a second prediction; infinite for weights that never do."""
    honours_scale: bool
    """True if guidance_scale changes the output."""
    guided_passes: int
    """Forward passes per step with guidance: 2 if the second prediction takes one of its own. The value is cache-dit's
    default for the family, until a count of the passes corrects it."""
    needs_negative_prompt: bool = False
    """True if the pipeline fails without a negative prompt. An empty one is enough."""


@dataclass(frozen=True)
class PipelineTraits:
    """Traits of a pipeline, derived from its class and signature, never from its path."""

    pipeline_class: str
    tasks: frozenset[Task]
    makes: MediaKind
    parameters: frozenset[str]
    """Parameter names of the pipeline's call."""
    sizes: SizeTraits
    steps: StepTraits
    guidance: GuidanceTraits
    sequence: SequenceTraits = SequenceTraits()
    extra_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Types of the call's further arguments, by name. Only types that JSON can express."""
    video: VideoTraits | None = None
    """Traits of the videos; None if the pipeline makes none."""
    heard: bool = False
    """True if its videos have sound."""
    audio: AudioTraits | None = None
    """Traits of the sound; None if the pipeline's output is not sound alone."""
    brought: Mapping[Input, str] = field(default_factory=dict)
    """Parameter of the call for each input: images, a mask, a video."""
    several_images: bool = False
    """True if several images give one output. Other pipelines would make one output per image."""
    samplers: SamplerTraits | None = None
    """Schedulers; None if the pipeline has none."""
    classes: ClassTraits | None = None
    """Traits of the classes; None if the pipeline draws from a prompt."""
    strength: StrengthTraits | None = None
    """Traits of `strength`; None if no strength determines how many steps run."""

    def takes(self, parameter: str) -> bool:
        return parameter in self.parameters

    def forward_passes(self, arguments: Mapping[str, Any]) -> int:
        """Return the forward passes per step of a call with these arguments: 2 if guidance takes a pass of its own.

        A pipeline with `true_cfg_scale` takes it if the scale is above 1 and there is a negative prompt. Other families
        with separate passes take it unless guidance is off.
        """
        guidance = self.guidance
        if self.takes("true_cfg_scale"):
            scale = arguments.get("true_cfg_scale", guidance.default_true_cfg_scale) or 0.0
            return 2 if scale > 1 and arguments.get("negative_prompt") is not None else 1
        scale = arguments.get("guidance_scale", guidance.default_scale)
        return guidance.guided_passes if scale is None or scale > guidance.guides_above else 1
