"""A plan while the fields of its request fill it in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from cache_dit_serving.caching.settings import CacheOptions
from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.fit import DEFAULT_FIT, Fit
from cache_dit_serving.media.kinds import KINDS, OutputSpec
from cache_dit_serving.planning.call import ImageCall, VideoSpec
from cache_dit_serving.planning.loras import LoraChoice
from cache_dit_serving.planning.model import AskedToProfile, PlannedModel
from cache_dit_serving.planning.samplers import SamplerChoice
from cache_dit_serving.schemas.answers import RequestWarning


@dataclass
class Draft:
    """Values of a plan. Each begins as the model's, and stays so if no field of the request decides it."""

    model: PlannedModel
    arguments: dict[str, Any]
    """Arguments of the pipeline's call."""
    width: int
    """Width of the output, pixels. A sound has none."""
    height: int
    """Height of the output, pixels. A sound has none."""
    steps: int
    """Denoising steps of one chunk, as a request counts them."""
    output: OutputSpec
    recorded: dict[str, Any] = field(default_factory=dict)
    """Effective values of request fields that the arguments hold under other names."""
    warnings: list[RequestWarning] = field(default_factory=list)
    seeds: tuple[int, ...] = ()
    """Seed of each output."""
    num_frames: int = 1
    fps: float | None = None
    """Frame rate of a video, frames per second; None if the output is not a clip."""
    chunks: int = 1
    """Number of times that the steps run, once for each chunk of a clip."""
    samples: int | None = None
    """Samples of a sound; None if the output is not a sound."""
    loras: tuple[LoraChoice, ...] = ()
    sampler: SamplerChoice | None = None
    """Scheduler; None if the pipeline has none."""
    speed: Speed | None = None
    cache: CacheOptions | None = None
    fit: Fit = DEFAULT_FIT
    profile: AskedToProfile = AskedToProfile.NO

    @classmethod
    def of(cls, model: PlannedModel) -> Draft:
        """Return the draft of a request without any field."""
        traits = model.traits
        configured = model.defaults.pipeline_arguments
        arguments = {name: value for name, value in configured.items() if traits.takes(name)}
        return cls(
            model,
            arguments,
            width=traits.sizes.default_width,
            height=traits.sizes.default_height,
            steps=model.usual_steps,
            output=OutputSpec(KINDS[traits.makes].default_format),
        )

    @property
    def pixels(self) -> int:
        """Size of the output: pixels of all its frames, or samples."""
        return self.samples or self.width * self.height * self.num_frames

    @property
    def num_inference_steps(self) -> int:
        """Denoising steps that run, over all chunks: one for each prediction of the noise."""
        samplers = self.model.traits.samplers
        if samplers is None or self.sampler is None:
            return self.steps * self.chunks
        return samplers.by_name[self.sampler.name].evaluations(self.steps) * self.chunks

    def check_work(self) -> None:
        """Refuse more work than the server takes in one request. A sound is bounded by its length instead.

        Raises:
            InvalidRequest: there are too many steps, or pixels x steps.
        """
        if self.steps > (most_steps := self.model.limits.max_num_inference_steps):  # of a model that lets none be asked
            raise InvalidRequest(
                f"{self.steps:,} steps are more than the {most_steps:,} this server takes", param="num_inference_steps"
            )
        most, outputs, model = self.model.max_pixel_steps, len(self.seeds), self.model
        work = self.pixels * self.num_inference_steps * outputs
        if most is None or self.samples is not None or work <= most:
            return
        frames, fewer = (" x num_frames", "frames") if model.traits.video else ("", "images")
        raise InvalidRequest(
            f"width x height{frames} x num_inference_steps x num_images is {work:,}; this server "
            f"takes at most {most:,} in one request: ask for fewer {fewer} or steps, or a smaller size",
            param="num_images" if outputs > 1 else "num_inference_steps",
            code="request_too_large",
        )

    def calls(self) -> tuple[ImageCall, ...]:
        """Return the call of each output.

        Raises:
            InvalidRequest: the speed or the cache settings do not fit the steps or the passes.
        """
        traits, steps = self.model.traits, self.num_inference_steps
        passes = traits.forward_passes(self.arguments)
        call = ImageCall(
            arguments=self.arguments,
            seed=self.seeds[0],
            cache=self.model.speeds.choose(self.speed, self.cache, num_inference_steps=steps, passes=passes),
            num_inference_steps=steps,
            passes=passes,
            pipeline_class=traits.pipeline_class,
            pixels=self.pixels,
            loras=self.loras,
            sampler=self.sampler,
            video=None if self.fps is None else VideoSpec(self.num_frames, self.fps),
            makes=traits.makes,
            profile=self.profile,
        )
        return tuple(replace(call, seed=seed) for seed in self.seeds)
