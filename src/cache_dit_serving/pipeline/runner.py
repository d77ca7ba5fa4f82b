"""One pipeline on one device: load it, run a generation image by image, say what it is.

A runner belongs to one thread (`jobs.worker`): neither diffusers' pipelines nor cache-dit's contexts are re-entrant.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from cache_dit_serving.caching.speeds import SpeedLadder
from cache_dit_serving.config import Settings
from cache_dit_serving.errors import InternalError, LoadError, OutOfMemory
from cache_dit_serving.pipeline.arguments import Drawing, GenerationCall, accepted_fields, plan
from cache_dit_serving.pipeline.environment import library_versions, memory_of, quiet_libraries
from cache_dit_serving.pipeline.evidence import Record, report_of
from cache_dit_serving.pipeline.traits import PipelineTraits, traits_of
from cache_dit_serving.pipeline.warm_up import try_cache, warm_up
from cache_dit_serving.schemas import BlockListStats, CacheReport, GenerateRequest, ModelInfo

if TYPE_CHECKING:
    import numpy as np
    from diffusers import DiffusionPipeline

    from cache_dit_serving.pipeline.clock import StepClock

logger = logging.getLogger(__name__)

OnStep = Callable[[int], None]
"""Called after each denoising step with the number done; may raise to stop the generation between two steps."""


@dataclass(frozen=True)
class DrawnImage:
    """One image as the pipeline left it."""

    pixels: np.ndarray[Any, Any]
    """(height, width, 3) floats in [0, 1]."""
    seed: int
    cache: CacheReport
    stats: list[BlockListStats]
    encode_prompt_s: float
    denoise_s: float
    decode_s: float
    cached_steps_s: float | None
    """Seconds of `denoise_s` in steps that reused something; None where steps could not be told apart."""
    diffs: list[float]
    """Every residual difference that the cache compared, NaN among them."""
    passes: int
    """Forward passes that each step took."""
    transition: str
    """What the cache needed to change for it: none, override or exchange."""

    @property
    def seconds(self) -> float:
        """From the prompt to the picture."""
        return self.encode_prompt_s + self.denoise_s + self.decode_s


class Runner(Protocol):
    """What the worker needs of whatever runs generations."""

    traits: PipelineTraits
    speeds: SpeedLadder
    warmed_up: list[tuple[GenerationCall, DrawnImage]]
    """What the warm-up drew: the first measurements of how long things take."""

    def draw(self, call: GenerationCall, drawing: Drawing, on_step: OnStep) -> DrawnImage: ...

    def plan(self, request: GenerateRequest) -> GenerationCall: ...

    def flush_cache(self) -> int: ...

    def describe(self) -> ModelInfo: ...


class PipelineRunner:
    """A diffusers pipeline in this process, with or without cache-dit."""

    def __init__(self, settings: Settings, progress: Callable[[str], None]) -> None:
        """Load, accelerate and warm up, telling `progress` what it is at.

        Raises:
            LoadError: what stands in the way, without paths or library texts.
        """
        progress("importing torch, diffusers and cache-dit")
        quiet_libraries()
        # Here, not at the top: whoever only reads service.py (bentoml build, the supervisor) needs no torch.
        from cache_dit_serving.pipeline import attention, cache, load

        self.settings = settings
        self._name = load.public_name(settings.model.path)
        self._pipe: DiffusionPipeline = load.load_pipeline(settings.model, progress)
        separate_cfg = settings.cache.enable_separate_cfg if settings.cache else None
        if separate_cfg is None:
            separate_cfg = cache.has_separate_cfg(self._pipe)
        self.traits = traits_of(self._pipe, separate_cfg=separate_cfg)
        load.check_servable(self.traits, settings.defaults)
        self.device = self._pipe.device
        self.attention_backend = settings.attention_backend or attention.NATIVE
        attention.set_backend(self._pipe, self.attention_backend, self.device.type)
        progress("installing the cache")
        self._cache = cache.PipelineCache(self._pipe)
        self._first_forward: float | None = None
        self._forward_passes = 0
        self._held_bytes = 0
        self._clock: StepClock | None = None
        for denoiser in _denoisers(self._pipe):
            denoiser.register_forward_pre_hook(self._note_forward)
        self.speeds = self._ladder()
        for cache_type in cache.CONFIGS:
            if cache_type not in self._cache.support.refusals:
                progress(f"trying the cache ({cache_type}) in a few steps")
                if (failure := try_cache(self, cache_type)) is not None:
                    self._cache.refuse(cache_type, failure)
                self.flush_cache()
        self.speeds = self._ladder()
        if self.speeds.unfulfilled:
            if settings.server.require_cache:
                raise LoadError(f"{self.speeds.unfulfilled}, and server.require_cache is set")
            logger.warning("serving without a cache: %s", self.speeds.unfulfilled)
        self.warmed_up = warm_up(self, settings, progress)

    def draw(self, call: GenerationCall, drawing: Drawing, on_step: OnStep) -> DrawnImage:
        """One image: the picture of `seed`, whatever ran before.

        Should the pipeline make another number of forward passes a step than the plan says, the cache has paired the
        wrong ones and the picture is wrong: it is drawn again with the passes that were counted.

        Raises:
            OutOfMemory: on the device; what the cache held is freed.
            InternalError: the cache cannot be paired with what the pipeline does.
            Exception: whatever `on_step` raises, and what the pipeline does; the next call is not affected.
        """
        image = self._draw_once(call, drawing, on_step)
        if image.cache.executed_steps == image.cache.steps:
            return image
        separate_cfg = self._forward_passes > call.num_inference_steps
        logger.warning("%d forward passes in %d steps: drawn again", self._forward_passes, call.num_inference_steps)
        image = self._draw_once(replace(call, separate_cfg=separate_cfg), drawing, on_step)
        if image.cache.executed_steps != image.cache.steps:
            raise InternalError("The cache cannot be paired with this model's forward passes; turn it off.")
        self.traits = replace(self.traits, separate_cfg=separate_cfg)
        return replace(image, cache=image.cache.model_copy(update={"redrawn": 1}))

    def _draw_once(self, call: GenerationCall, drawing: Drawing, on_step: OnStep) -> DrawnImage:
        import torch

        from cache_dit_serving.pipeline.clock import StepClock

        transition = self._cache.prepare(
            drawing.cache.settings, call.num_inference_steps, separate_cfg=call.separate_cfg
        )
        self._first_forward = None
        self._forward_passes = 0
        self._clock = clock = StepClock(self.device)
        denoised = time.perf_counter()

        def after_step(done: int) -> None:
            nonlocal denoised
            clock.mark()
            if done >= call.num_inference_steps:
                # Kernels run behind Python: the last step ends when the device is done with it.
                if self.device.type != "cpu":
                    torch.accelerator.synchronize(self.device)
                denoised = time.perf_counter()
            on_step(done)

        started = time.perf_counter()
        try:
            # The pipeline's own no_grad stays inside; on the embedded model inference mode takes 5 % off a picture.
            with torch.inference_mode(), self._steps_reported(after_step) as callback:
                output = self._pipe(
                    **call.arguments,
                    **callback,
                    # On the CPU, so that a seed means the same noise on every device.
                    generator=torch.Generator("cpu").manual_seed(drawing.seed),
                    output_type="np",
                )
        except torch.OutOfMemoryError:
            logger.exception("out of memory at %d pixels", call.pixels)
            output = None
        if output is None:
            # Outside the handler: while the exception lives, so do the tensors of every frame it passed.
            self.flush_cache()
            raise OutOfMemory
        finished = time.perf_counter()
        first_forward = self._first_forward or started
        record = self._cache.record()
        steps = self._steps_run(call, record)
        step_s = clock.seconds()
        self._held_bytes = self._cache.held_bytes()
        return DrawnImage(
            pixels=output.images[0],
            seed=drawing.seed,
            cache=report_of(drawing.cache, record, steps),
            stats=record.block_lists if record is not None else [],
            passes=call.passes,
            transition=transition,
            diffs=record.diffs() if record is not None else [],
            cached_steps_s=_cached_seconds(record, step_s, steps),
            encode_prompt_s=first_forward - started,
            denoise_s=max(0.0, denoised - first_forward),
            decode_s=finished - denoised,
        )

    def flush_cache(self) -> int:
        """Free the activations that the last generation left behind; returns bytes."""
        freed = self._cache.flush()
        self._held_bytes = 0
        if self.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()
        return freed

    def describe(self) -> ModelInfo:
        """The model, its versions and what it holds. Reads nothing that a running generation changes."""
        settings = self.settings
        return ModelInfo(
            model=self._name,
            pipeline_class=self.traits.pipeline_class,
            tasks=[self.traits.task],
            dtype=settings.model.dtype,
            device=str(self.device),
            versions=library_versions(),
            accepted_fields=accepted_fields(self.traits),
            defaults=self._effective_defaults(),
            limits={**settings.limits.model_dump(mode="json"), "size_multiple": self.traits.size_multiple},
            attention_backend=self.attention_backend,
            cache=self._describe_cache(),
            memory=memory_of(self.device) | {"cached_activation_bytes": self._held_bytes},
        )

    def plan(self, request: GenerateRequest) -> GenerationCall:
        """The call that answers a request; raises as :func:`pipeline.arguments.plan`."""
        return plan(request, self.traits, self.settings, self.speeds)

    def _ladder(self) -> SpeedLadder:
        steps = self.settings.defaults.num_inference_steps or self.traits.default_num_inference_steps
        return SpeedLadder(self.settings, self._cache.support, steps)

    @contextmanager
    def _steps_reported(self, after_step: OnStep) -> Iterator[dict[str, Any]]:
        """Have `after_step` called after each step; yields the arguments that the pipeline's call needs for it."""
        if self.traits.takes("callback_on_step_end"):

            def callback(pipe: object, index: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
                after_step(index + 1)
                return tensors

            yield {"callback_on_step_end": callback}
            return
        # Pipelines without a callback (PixArt, HunyuanVideo 1.5 ...) still step their scheduler once for each step.
        # Counting the transformer's forward passes instead would depend on how a family batches its guidance.
        scheduler = self._pipe.scheduler
        step, done = scheduler.step, 0

        def counted_step(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            result = step(*args, **kwargs)
            done += 1
            after_step(done)
            return result

        scheduler.step = counted_step
        try:
            yield {}
        finally:
            del scheduler.step

    def _steps_run(self, call: GenerationCall, record: Record | None) -> int:
        """Steps of the call that just ended: those asked for, or as many as its scheduler made of them (Heun's method
        evaluates nearly twice as often), whichever the cache saw."""
        scheduled = len(getattr(self._pipe.scheduler, "timesteps", ()))
        seen = record.executed_steps if record is not None else scheduled
        return scheduled if scheduled and seen == scheduled else call.num_inference_steps

    def _note_forward(self, module: object, args: object) -> None:
        self._forward_passes += 1
        if self._first_forward is None:
            self._first_forward = time.perf_counter()
            if self._clock is not None:
                self._clock.mark()

    def _effective_defaults(self) -> dict[str, Any]:
        """What a request that holds only a prompt gets."""
        arguments = self.plan(GenerateRequest(prompt="-", speed="lossless")).arguments
        return {name: value for name, value in arguments.items() if name != "prompt"}

    def _describe_cache(self) -> dict[str, Any] | None:
        """The cache as the configuration asks for it; None where it does not."""
        default, unfulfilled = self.speeds.default, self.speeds.unfulfilled
        if default is None and unfulfilled is None:
            return None
        return {
            "settings": default.effective() if default else None,
            "speed": self.speeds.name_of(default),
            "blocks": dict(self.speeds.support.block_lists),
            "running": unfulfilled is None,
            "reason": unfulfilled,
        }


def _cached_seconds(record: Record | None, step_s: list[float], steps: int) -> float | None:
    """Seconds in steps that reused something; None where the clock and the cache do not mean the same steps."""
    if record is None:
        return 0.0
    if not len(step_s) == record.executed_steps == steps:
        return None
    return sum(step_s[step] for step in record.cached_steps())


def _denoisers(pipe: DiffusionPipeline) -> list[Any]:
    """The networks that run once or twice a step."""
    return [
        module
        for name, module in pipe.components.items()
        if module is not None and name.startswith(("transformer", "unet", "prior"))
    ]
