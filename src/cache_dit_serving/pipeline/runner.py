"""Runner of one pipeline on one device, in this process: draws a call image by image.

A runner belongs to one thread (`jobs.worker`): neither diffusers' pipelines nor cache-dit's contexts are re-entrant.
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from cache_dit_serving.caching.evidence import Record, report_of
from cache_dit_serving.errors import InternalError, OutOfMemory
from cache_dit_serving.media.values import Clip, Picture
from cache_dit_serving.pipeline.output import OutputFields, media_of, output_of, sound_rate_of
from cache_dit_serving.pipeline.prompts import Heard, cuts_of, listening, tokenizers_of
from cache_dit_serving.pipeline.protocol import Drawn, DrawRecord, Facts, Freed, Stopped, Watch
from cache_dit_serving.planning.call import ImageCall

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from cache_dit_serving.pipeline.cache import PipelineCache
    from cache_dit_serving.pipeline.clock import StepClock
    from cache_dit_serving.pipeline.lora import Loras
    from cache_dit_serving.pipeline.previews import Previewer
    from cache_dit_serving.pipeline.profiling import Profiler, Trace
    from cache_dit_serving.pipeline.prompt_cache import PromptCache, Use
    from cache_dit_serving.planning.loras import LoraContents

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """One of the pipelines that share the loaded weights, with its cache and traits."""

    pipe: DiffusionPipeline
    cache: PipelineCache
    """cache-dit on this pipeline."""
    output: OutputFields
    sound_rate: int | None
    """Samples a second of the pipeline's sound; None if it makes none."""
    tokenizers: dict[str, Any]
    has_callback: bool

    @classmethod
    def of(cls, pipe: DiffusionPipeline, cache: PipelineCache) -> Part:
        """Return the part for a pipeline on its device, with its cache."""
        has_callback = "callback_on_step_end" in inspect.signature(type(pipe).__call__).parameters
        return cls(pipe, cache, output_of(type(pipe)), sound_rate_of(pipe), tokenizers_of(pipe), has_callback)

    @property
    def name(self) -> str:
        """Name of the pipeline's class."""
        return type(self.pipe).__name__


class PipelineRunner:
    """Runner of a diffusers pipeline in this process, with or without cache-dit, and of its siblings."""

    def __init__(
        self,
        parts: Sequence[Part],
        facts: Facts,
        loras: Loras,
        prompts: PromptCache,
        profiler: Profiler,
        *,
        previewer: Previewer | None = None,
        compiled_graphs: Callable[[], int] | None = None,
    ) -> None:
        """
        Args:
            parts: the loaded pipeline first.
            loras: LoRAs on all parts.
            prompts: prompt cache that is installed on all parts.
            profiler: writer of the calls' traces.
            previewer: maker of previews from the parts' latents; None: no previews.
            compiled_graphs: function that returns the number of graphs compiled in this process; None: no compilation.
        """
        import torch

        from cache_dit_serving.pipeline.memory import MemoryUse

        self._loras = loras
        self._prompts = prompts
        self._profiler = profiler
        self._previewer = previewer
        self._trace: Trace | None = None
        self._compiled_graphs = compiled_graphs or (lambda: 0)
        self.facts = facts
        self._parts = {part.name: part for part in parts}
        self._part = parts[0]
        """Part that ran last; only its cache can be on."""
        self._device = torch.device(facts.device)
        self._memory_use = MemoryUse(self._device)
        self._first_forward: float | None = None
        self._forward_passes = 0
        self._held_bytes = 0
        self._clock: StepClock | None = None
        for denoiser in _denoisers(self._part.pipe):
            denoiser.register_forward_pre_hook(self._note_forward)

    lost: str | None = None
    ended = False

    def close(self) -> None:
        pass

    @property
    def _cache(self) -> PipelineCache:
        return self._part.cache

    def sample(self, call: ImageCall, watch: Watch) -> Drawn:
        """Draw the output of a call. It depends on the call and its seed alone, not on earlier images.

        If the pipeline makes another number of forward passes a step than the call says, the cache has compared the
        wrong passes and the picture is wrong. It is drawn again with the counted passes, which the record then has.

        Raises:
            Stopped: the watch was cancelled; raised between two steps.
            OutOfMemory: the device's memory ran out. The cache's activations are freed.
            InternalError: the cache cannot be paired with the pipeline's forward passes.
            Exception: any error of the pipeline; the next image is not affected.
        """
        image = self._sample_once(call, watch)
        if image.record.cache.executed_steps == image.record.cache.steps:
            return image
        passes = 2 if self._forward_passes > call.num_inference_steps else 1
        logger.warning("%d forward passes in %d steps: drawn again", self._forward_passes, call.num_inference_steps)
        image = self._sample_once(replace(call, passes=passes), watch)
        report = image.record.cache
        if report.executed_steps != report.steps:
            raise InternalError("The cache cannot be paired with this model's forward passes; turn it off.")
        return replace(image, record=replace(image.record, cache=report.model_copy(update={"redrawn": 1})))

    def _sample_once(self, call: ImageCall, watch: Watch) -> Drawn:
        from cache_dit_serving.pipeline.clock import StepClock
        from cache_dit_serving.pipeline.memory import is_out_of_memory
        from cache_dit_serving.pipeline.placing import release

        self._trace = trace = self._profiler.trace(call.profile)
        part, transition = self._prepared(call)
        self._first_forward = None
        self._forward_passes = 0
        self._clock = clock = StepClock(self._device)
        denoised = time.perf_counter()
        reused = cached = 0

        def after_step(done: int) -> None:
            nonlocal denoised, reused, cached
            clock.mark()
            trace.stage(f"step {done}" if done < call.num_inference_steps else "decode")
            if done >= call.num_inference_steps:
                denoised = self._device_time()
            before, reused = reused, self._cache.reused_blocks()
            cached += reused > before
            watch.progress(done, cached)
            if watch.cancelled:
                raise Stopped

        graphs = self._compiled_graphs()
        self._memory_use.begin()
        started = time.perf_counter()
        try:
            with trace:
                output, heard, prompts = self._call(part, call, after_step, watch)
        except BaseException as error:
            release(part.pipe)
            if not is_out_of_memory(error):
                raise
            logger.exception("out of memory at %d pixels", call.pixels)
            output = None
        if output is None:
            # Outside the handler: the exception keeps the tensors of every frame that it passed.
            self.flush()
            width, height = (call.arguments.get(side) for side in ("width", "height"))
            raise OutOfMemory(self._memory_use.would_fit(width, height, call.pixels) if width and height else None)
        finished = time.perf_counter()
        first_forward = self._first_forward or started
        record = self._cache.record()
        steps = self._steps_run(call, record)
        step_s = clock.seconds()
        self._held_bytes = self._cache.held_bytes()
        fps = call.clip.fps if call.clip else None
        media = media_of(output, part.output, fps=fps, sound_rate=part.sound_rate)
        drawn = DrawRecord(
            seed=call.seed,
            cache=report_of(call.cache, record, steps),
            stats=record.block_lists if record is not None else [],
            passes=call.passes,
            transition=transition,
            diffs=record.diffs() if record is not None else [],
            cached_steps_s=_cached_seconds(record, step_s, steps),
            encode_prompt_s=first_forward - started,
            denoise_s=max(0.0, denoised - first_forward),
            decode_s=finished - denoised,
            cuts=cuts_of(heard, _prompts_of(call)),
            compiled_graphs=self._compiled_graphs() - graphs,
            profile=trace.save(call.seed, record.cached_steps() if record is not None else ()),
            peak_memory_bytes=self._memory_use.end(call.pixels),
            prompt_hits=prompts.hits,
            prompt_misses=prompts.misses,
            num_frames=len(media.array) if isinstance(media, Clip) else None,
            size=(media.array.shape[-2], media.array.shape[-3]) if isinstance(media, Picture | Clip) else None,
        )
        return Drawn(media, drawn)

    def _prepared(self, call: ImageCall) -> tuple[Part, str]:
        """Prepare the pipeline, LoRAs and cache of a call; return the part, and the change of the cache."""
        part = self._parts[call.pipeline_class]
        if part is not self._part:
            # The parts share the transformer, and only one patch may be on it.
            self._cache.prepare(None, 0, passes=1)
            self._part = part
        self._loras.use(call.loras)
        settings = call.cache.settings
        return part, self._cache.prepare(settings, call.num_inference_steps, passes=call.passes)

    def _call(
        self, part: Part, call: ImageCall, after_step: Callable[[int], None], watch: Watch
    ) -> tuple[Any, list[Heard], Use]:
        """Call the pipeline; return its result, its tokenizers' calls, and the use of the prompt cache."""
        import torch

        show = None if self._previewer is None else self._previewer.showing(part.pipe, call, watch)
        # The pipeline's own no_grad stays inside. On the embedded model inference mode saves 5 % of a picture's time.
        # It is not used with offload: weights that are moved in inference mode cannot get another LoRA afterwards.
        guard = torch.inference_mode if self.facts.offload is None else torch.no_grad
        with (
            guard(),
            # Some families draw noise, or sample a picture's latents, without the generator of the call.
            torch.random.fork_rng([self._device] if self._device.type == "cuda" else []),
            self._steps_reported(after_step, show) as callback,
            listening(part.tokenizers) as heard,
            self._prompts.used(heard, call.caller) as prompts,
        ):
            torch.manual_seed(call.seed)
            output = part.pipe(
                **call.arguments,
                **callback,
                generator=torch.Generator(self.facts.generator_device).manual_seed(call.seed),
                output_type="np",
            )
        return output, heard, prompts

    def no_previews(self, pipeline_class: str) -> str | None:
        """Return the reason that a pipeline class has no previews; None if it has, or may have."""
        if self._previewer is None:
            return "there are no previews on this server"
        return self._previewer.why_none(pipeline_class)

    def flush(self) -> Freed:
        """Free the activations of the last generation and the prompt embeddings; return their bytes."""
        freed = Freed(self._cache.flush(), self._prompts.flush())
        self._held_bytes = 0
        if self._device.type == "cuda":
            import torch

            torch.cuda.empty_cache()
        return freed

    def memory(self) -> dict[str, int]:
        """Return the bytes of this process and the device, of the last image's cached activations, and of the prompt
        embeddings."""
        from cache_dit_serving.pipeline.memory import held_bytes

        held = {"cached_activation_bytes": self._held_bytes, "prompt_cache_bytes": self._prompts.held_bytes}
        return held_bytes(self._device) | held

    def loras(self) -> Mapping[str, LoraContents]:
        """Return the LoRAs that are loaded beside the weights, by name."""
        return self._loras.loaded

    def load_lora(self, name: str) -> None:
        """Load a LoRA of the folder, if it is not loaded."""
        self._loras.ensure([name])

    def unload_lora(self, name: str) -> None:
        """Free a LoRA of the folder, if it is loaded."""
        self._loras.unload(name)

    @contextmanager
    def _steps_reported(
        self, after_step: Callable[[int], None], show: Callable[[int, Any], None] | None
    ) -> Iterator[dict[str, Any]]:
        """Make the pipeline call `after_step` after each step, and then `show` with the latents.

        Yields the further arguments of the pipeline's call.
        """
        done = 0
        if self._part.has_callback:

            def callback(pipe: object, index: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
                nonlocal done
                done += 1  # the index begins anew with each chunk of a long clip
                after_step(done)
                if show is not None:
                    show(done, tensors.get("latents"))
                return {}  # changes nothing; LTXI2VLongMultiPrompt passes latents here that it cannot take back

            yield {"callback_on_step_end": callback}
            return
        # Pipelines without a callback (PixArt, HunyuanVideo 1.5 ...) still step their scheduler once for each step.
        # Counting the transformer's forward passes instead would depend on how a family batches its guidance.
        cls = type(self._part.pipe.scheduler)
        step = cls.step

        @functools.wraps(step)  # pipelines inspect its parameters
        def counted_step(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            result = step(*args, **kwargs)
            done += 1
            after_step(done)
            if show is not None:
                show(done, result[0])
            return result

        # On the class: some pipelines step a copy of their scheduler.
        with patch.object(cls, "step", counted_step):
            yield {}

    def _steps_run(self, call: ImageCall, record: Record | None) -> int:
        """Return the number of steps of the call that just ended.

        It is the requested number, or the scheduler's number of timesteps if the cache counted that many. Heun's method
        has nearly twice the requested number.
        """
        if call.num_inference_steps != call.arguments.get("num_inference_steps"):
            return call.num_inference_steps  # `strength` has shortened the schedule
        scheduled = len(getattr(self._part.pipe.scheduler, "timesteps", ()))
        seen = record.executed_steps if record is not None else scheduled
        return scheduled if scheduled and seen == scheduled else call.num_inference_steps

    def _device_time(self) -> float:
        """Wait for the device, whose kernels run behind Python, and return the time, seconds of `perf_counter`.

        Called at the begin and the end of denoising, never at a step between them.
        """
        import torch

        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()

    def _note_forward(self, module: object, args: object) -> None:
        self._forward_passes += 1
        if self._first_forward is None:
            self._first_forward = self._device_time()
            if self._clock is not None:
                self._clock.mark()
            if self._trace is not None:
                self._trace.stage("step 0")


def _prompts_of(call: ImageCall) -> dict[str, str]:
    """Return the prompts of a call by field, the longest first, since one may contain another."""
    texts = {name: call.arguments.get(name) for name in ("prompt", "negative_prompt")}
    given = {name: text for name, text in texts.items() if isinstance(text, str)}
    return dict(sorted(given.items(), key=lambda item: -len(item[1])))


def _cached_seconds(record: Record | None, step_s: list[float], steps: int) -> float | None:
    """Return the seconds of steps that reused blocks; None if the clock and the cache counted different steps."""
    if record is None:
        return 0.0
    if not len(step_s) == record.executed_steps == steps:
        return None
    return sum(step_s[step] for step in record.cached_steps())


def _denoisers(pipe: DiffusionPipeline) -> list[Any]:
    """Return the networks that run once or twice a step."""
    return [
        module
        for name, module in pipe.components.items()
        if module is not None and name.startswith(("transformer", "unet", "prior"))
    ]
