"""What requests need to know of a loaded pipeline. How it is read from one is in :mod:`pipeline.introspect`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.planning.tasks import Input, Task


@dataclass(frozen=True)
class SizeTraits:
    multiple: int
    """Width and height must be multiples of this, in pixels."""
    default_width: int
    """The pipeline's own, in pixels, where it takes one; likewise the height."""
    default_height: int


@dataclass(frozen=True)
class ClipTraits:
    default_frames: int
    """The pipeline's own number of frames."""
    multiple: int
    """Frames that one latent frame stands for."""
    remainder: int
    """A clip has `multiple` x k + `remainder` frames."""
    frames_parameter: str | None
    """Under which the pipeline's call takes the number of frames; None where the video that it is given decides."""
    fps_parameter: str | None
    """And the frame rate, where the model is told of it."""
    default_fps: float
    least: int | None = None
    """Fewest frames, where the autoencoder decodes no fewer."""
    most: int | None = None
    """Most frames, where the weights make no more."""
    chunk: int | None = None
    """Frames that are denoised together, where a longer clip runs all its steps for each chunk of them."""

    def chunks(self, frames: int) -> int:
        """How often the steps run for a clip."""
        return math.ceil(frames / self.chunk) if self.chunk else 1


@dataclass(frozen=True)
class SoundTraits:
    length_parameter: str
    """Under which the pipeline's call takes the length, in seconds."""
    default_length_s: float
    most_length_s: float | None
    """The longest that the model makes; None where its class names no bound."""
    rate: int
    """Samples a second."""
    always_whole: bool
    """Whether it makes the longest each time, and cuts off what is not asked for."""


@dataclass(frozen=True)
class StrengthTraits:
    default: float
    """The pipeline's own strength."""
    rounds_up: bool
    """Whether a step that strength leaves in part is run."""

    def steps_run(self, num_inference_steps: int, strength: float) -> int:
        """Denoising steps that are left of a schedule; computed as diffusers 0.42's `get_timesteps` does."""
        if self.rounds_up:
            return num_inference_steps - int(
                num_inference_steps - min(num_inference_steps * strength, num_inference_steps)
            )
        return min(int(num_inference_steps * strength), num_inference_steps)


@dataclass(frozen=True)
class ClassTraits:
    """The classes that a class-conditional pipeline draws."""

    parameter: str
    """Under which the pipeline's call takes a list of them."""
    count: int
    names: Mapping[str, int]
    """Number by name, where the model holds names; several may mean one class."""


@dataclass(frozen=True)
class SequenceTraits:
    """Tokens of a prompt."""

    default: int | None = None
    """The pipeline's own max_sequence_length; None where it takes none."""
    most: int | None = None
    """The greatest that its class lets pass; None where it checks none."""


@dataclass(frozen=True)
class StepTraits:
    default: int
    """The pipeline's own num_inference_steps."""
    least: int
    """Fewer fail in its scheduler."""
    flow_matching: bool
    """Whether its noise levels (sigmas) lie in (0, 1]."""


@dataclass(frozen=True)
class GuidanceTraits:
    default_scale: float | None
    """The pipeline's own guidance_scale; None where it takes none."""
    default_true_cfg_scale: float | None
    guides_above: float
    """The guidance_scale above which the pipeline predicts twice; infinite for weights that never do."""
    honours_scale: bool
    """Whether guidance_scale changes the picture."""
    separate_cfg: bool
    """Whether the family makes the second prediction in a forward pass of its own: cache-dit's default for it, until
    a count of the passes says otherwise."""
    needs_negative_prompt: bool = False
    """Whether the pipeline fails without one, be it empty."""


@dataclass(frozen=True)
class PipelineTraits:
    """A pipeline by its class and signature, never by its path."""

    pipeline_class: str
    tasks: frozenset[Task]
    makes: MediaKind
    parameters: frozenset[str]
    """Names that the pipeline's call takes."""
    sizes: SizeTraits
    steps: StepTraits
    guidance: GuidanceTraits
    sequence: SequenceTraits = SequenceTraits()
    extra_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Type by name of the call's further arguments, as far as JSON can say them."""
    clip: ClipTraits | None = None
    """Of a pipeline that makes clips."""
    heard: bool = False
    """Whether its clips have a sound."""
    sound: SoundTraits | None = None
    """Of a pipeline that makes sounds alone."""
    brought: Mapping[Input, str] = field(default_factory=dict)
    """Parameter of the call by what it is given: pictures, a mask, a video."""
    several_pictures: bool = False
    """Whether it makes one output of more than one picture; others would make one of each."""
    classes: ClassTraits | None = None
    """Of a pipeline that draws a class, not a prompt."""
    strength: StrengthTraits | None = None
    """Of a pipeline whose strength says how many of the steps run."""

    def takes(self, parameter: str) -> bool:
        return parameter in self.parameters
