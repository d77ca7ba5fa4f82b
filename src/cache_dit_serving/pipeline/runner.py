"""One pipeline on one device: load it, run a generation image by image, say what it is.

A runner belongs to one thread (`jobs.worker`): neither diffusers' pipelines nor cache-dit's contexts are re-entrant.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cache_dit_serving.caching.evidence import Record, report_of
from cache_dit_serving.caching.speeds import SpeedLadder
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.errors import InternalError, LoadError, OutOfMemory
from cache_dit_serving.media.values import Picture
from cache_dit_serving.pipeline.environment import library_versions, memory_of, quiet_libraries
from cache_dit_serving.pipeline.introspect import traits_of
from cache_dit_serving.pipeline.protocol import Drawn, DrawRecord, OnStep
from cache_dit_serving.pipeline.warm_up import try_cache, warm_up
from cache_dit_serving.planning.call import Drawing, GenerationCall
from cache_dit_serving.planning.fields import accepted_fields
from cache_dit_serving.planning.fields.field import PipelineField
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.planning.traits import PipelineTraits
from cache_dit_serving.schemas.answers import ModelInfo

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from cache_dit_serving.pipeline.clock import StepClock

logger = logging.getLogger(__name__)


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
        traits = traits_of(self._pipe, separate_cfg=separate_cfg)
        load.check_servable(traits, settings.defaults)
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
        self.model = self._planned(traits)
        for cache_type in cache.CONFIGS:
            if cache_type not in self._cache.support.refusals:
                progress(f"trying the cache ({cache_type}) in a few steps")
                if (failure := try_cache(self, cache_type)) is not None:
                    self._cache.refuse(cache_type, failure)
                self.flush_cache()
        self.model = self._planned(self.model.traits)
        if (unfulfilled := self.model.speeds.unfulfilled) is not None:
            if settings.server.require_cache:
                raise LoadError(f"{unfulfilled}, and server.require_cache is set")
            logger.warning("serving without a cache: %s", unfulfilled)
        self.warmed_up = warm_up(self, settings, progress)

    def draw(self, call: GenerationCall, drawing: Drawing, on_step: OnStep) -> Drawn:
        """One image: the picture of `seed`, whatever ran before.

        Should the pipeline make another number of forward passes a step than the plan says, the cache has paired the
        wrong ones and the picture is wrong: it is drawn again with the passes that were counted.

        Raises:
            OutOfMemory: on the device; what the cache held is freed.
            InternalError: the cache cannot be paired with what the pipeline does.
            Exception: whatever `on_step` raises, and what the pipeline does; the next call is not affected.
        """
        image = self._draw_once(call, drawing, on_step)
        if image.record.cache.executed_steps == image.record.cache.steps:
            return image
        passes = 2 if self._forward_passes > call.num_inference_steps else 1
        logger.warning("%d forward passes in %d steps: drawn again", self._forward_passes, call.num_inference_steps)
        image = self._draw_once(replace(call, passes=passes), drawing, on_step)
        report = image.record.cache
        if report.executed_steps != report.steps:
            raise InternalError("The cache cannot be paired with this model's forward passes; turn it off.")
        guidance = replace(self.model.traits.guidance, separate_cfg=passes == 2)
        self.model = replace(self.model, traits=replace(self.model.traits, guidance=guidance))
        return replace(image, record=replace(image.record, cache=report.model_copy(update={"redrawn": 1})))

    def _draw_once(self, call: GenerationCall, drawing: Drawing, on_step: OnStep) -> Drawn:
        import torch

        from cache_dit_serving.pipeline.clock import StepClock

        transition = self._cache.prepare(drawing.cache.settings, call.num_inference_steps, passes=call.passes)
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
        drawn = DrawRecord(
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
        return Drawn(Picture(output.images[0]), drawn)

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
        settings, traits = self.settings, self.model.traits
        return ModelInfo(
            model=self._name,
            pipeline_class=traits.pipeline_class,
            tasks=sorted(traits.tasks),
            dtype=settings.model.dtype,
            device=str(self.device),
            versions=library_versions(),
            accepted_fields=[field.name for field in accepted_fields(self.model)],
            defaults=self._effective_defaults(),
            limits={**settings.limits.model_dump(mode="json"), "size_multiple": traits.sizes.multiple},
            attention_backend=self.attention_backend,
            cache=self._describe_cache(),
            memory=memory_of(self.device) | {"cached_activation_bytes": self._held_bytes},
        )

    def _planned(self, traits: PipelineTraits) -> PlannedModel:
        settings = self.settings
        steps = settings.defaults.num_inference_steps or traits.steps.default
        speeds = SpeedLadder(settings.cache, settings.speeds, self._cache.support, steps)
        return PlannedModel(traits, settings.defaults, settings.limits, speeds)

    @contextmanager
    def _steps_reported(self, after_step: OnStep) -> Iterator[dict[str, Any]]:
        """Have `after_step` called after each step; yields the arguments that the pipeline's call needs for it."""
        if self.model.traits.takes("callback_on_step_end"):

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
        defaults = {
            field.name: field.default(self.model)
            for field in accepted_fields(self.model)
            if isinstance(field, PipelineField)
        }
        given = {name: value for name, value in defaults.items() if value is not None}
        return given | self.settings.defaults.pipeline_arguments

    def _describe_cache(self) -> dict[str, Any] | None:
        """The cache as the configuration asks for it; None where it does not."""
        speeds = self.model.speeds
        default, unfulfilled = speeds.default, speeds.unfulfilled
        if default is None and unfulfilled is None:
            return None
        return {
            "settings": default.effective() if default else None,
            "speed": speeds.name_of(default),
            "blocks": dict(speeds.support.block_lists),
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
