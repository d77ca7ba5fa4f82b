"""One output while a pipeline draws it: its steps, its times, and the record of them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from cache_dit_serving.caching.evidence import Record, report_of
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.pipeline.part import Part
from cache_dit_serving.pipeline.prompts import Heard, cuts_of
from cache_dit_serving.pipeline.protocol import SampleRecord, Stopped, Watch
from cache_dit_serving.pipeline.wrapped import Method, wrapped
from cache_dit_serving.planning.call import ImageCall

if TYPE_CHECKING:
    import torch
    from torch.utils.hooks import RemovableHandle

    from cache_dit_serving.pipeline.guidance import SharedGuidance
    from cache_dit_serving.pipeline.profiling import Trace
    from cache_dit_serving.pipeline.prompt_cache import Use

Show = Callable[[int, Any], None]
"""Function that takes the number of finished steps and the latents after them."""


class Drawing:
    """One run of a pipeline for one call. It is used once, and holds all that the run counts and times."""

    def __init__(
        self,
        call: ImageCall,
        part: Part,
        watch: Watch,
        *,
        device: torch.device,
        trace: Trace,
        transition: str,
        stops_around: bool,
        guidance: SharedGuidance | None = None,
    ) -> None:
        """
        Args:
            part: pipeline of the call, with its cache prepared.
            guidance: sharing of the call's forward passes with other ranks; None: this process makes all of them.
            watch: receiver of the progress, and source of the cancellation.
            device: device of the pipeline.
            trace: trace of the output.
            transition: change of the cache for the call.
            stops_around: whether a cancellation also stops what runs before the first step and after the last one.
        """
        from cache_dit_serving.pipeline.clock import StepClock
        from cache_dit_serving.pipeline.prompt_cache import Use

        self.call = call
        self.part = part
        self.watch = watch
        self.forward_passes = 0
        self._trace = trace
        self._device = device
        self._transition = transition
        self._stops_around = stops_around
        self._hooks: list[RemovableHandle] = []
        """Hooks that stop what runs before the first step or after the last one."""
        self._guidance = guidance
        self._clock = StepClock(device)
        self._started = self._finished = self._denoised = time.perf_counter()
        self._began = time.time()
        self._first_forward: float | None = None
        self._heard: list[Heard] = []
        self._prompts = Use()
        self._done = self._cached = self._reused_blocks = self._timesteps = 0

    @property
    def counted_passes(self) -> int:
        """Forward passes per step that ran so far, 1 or 2."""
        return 2 if self.forward_passes > min(self._done + 1, self.call.num_inference_steps) else 1

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time and trace the body, and count the forward passes of the denoisers in it."""
        hooks = [denoiser.register_forward_pre_hook(self._before_forward) for denoiser in self.part.denoisers]
        self._stop_between_blocks()
        self._began, self._started = time.time(), time.perf_counter()
        try:
            with self._trace:
                yield
        finally:
            for hook in (*hooks, *self._hooks):
                hook.remove()
        self._finished = self._device_time()

    def passes_shared(self) -> AbstractContextManager[None]:
        """Share the forward passes of the pipeline's call in the body with other ranks, if there are any.

        Raises:
            PassesVary: as :meth:`SharedGuidance.shared`.
        """
        return nullcontext() if self._guidance is None else self._guidance.shared(self.part.pipe)

    @contextmanager
    def steps_reported(self, show: Show | None) -> Iterator[dict[str, Any]]:
        """Report each step of a pipeline's call in the body, and offer its latents to `show`.

        Yields the further arguments of the pipeline's call.

        Raises:
            Stopped: the watch was cancelled; raised inside the pipeline's call.
        """
        if self.part.has_callback:

            def callback(pipe: object, index: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
                self._after_step(show, tensors.get("latents"))
                return {}  # changes nothing; LTXI2VLongMultiPrompt passes latents here that it cannot take back

            yield {"callback_on_step_end": callback}
            self._timesteps = self._scheduled()
            return

        def counting(step: Method) -> Method:
            @functools.wraps(step)  # pipelines inspect its parameters
            def counted_step(*args: Any, **kwargs: Any) -> Any:
                result = step(*args, **kwargs)
                self._after_step(show, result[0])
                return result

            return counted_step

        # Pipelines without a callback (PixArt, HunyuanVideo 1.5 ...) still step their scheduler once for each step.
        # Counting the transformer's forward passes instead would depend on how a family batches its guidance.
        # On the class: some pipelines step a copy of their scheduler.
        with wrapped(type(self.part.pipe.scheduler), "step", counting):
            yield {}
        self._timesteps = self._scheduled()

    def encoded(self, heard: list[Heard], prompts: Use) -> None:
        """Take the calls of the tokenizers, and the use of the prompt cache."""
        self._heard, self._prompts = heard, prompts

    def record(self, shape: Sequence[int], *, compiled_graphs: int, peak_memory_bytes: int | None) -> SampleRecord:
        """Return the record of the run, which has ended. Writes its trace.

        Args:
            shape: shape of the output's array.
            compiled_graphs: number of graphs that were compiled in it.
            peak_memory_bytes: peak of the memory in it; None if not known.
        """
        call, record = self.call, self.part.cache.record()
        if record is not None and self._guidance is not None:
            record = self._guidance.merged(record)
        steps, step_s = self._steps_run(record), self._clock.seconds()
        first_forward = self._first_forward or self._started
        kind = self.part.output.kind
        return SampleRecord(
            seed=call.seed,
            cache=report_of(call.cache, record, steps),
            stats=record.block_lists if record is not None else [],
            passes=call.passes,
            transition=self._transition,
            diffs=record.diffs() if record is not None else [],
            cached_steps_s=_cached_seconds(record, step_s, steps),
            encode_prompt_s=first_forward - self._started,
            denoise_s=max(0.0, self._denoised - first_forward),
            decode_s=self._finished - self._denoised,
            cuts=cuts_of(self._heard, _prompts_of(call)),
            compiled_graphs=compiled_graphs,
            profile=self._trace.save(call.seed, record.cached_steps() if record is not None else ()),
            peak_memory_bytes=peak_memory_bytes,
            prompt_hits=self._prompts.hits,
            prompt_misses=self._prompts.misses,
            num_frames=shape[0] if kind is MediaKind.VIDEO else None,
            began=self._began,
            step_s=tuple(step_s),
            size=None if kind is MediaKind.AUDIO else (shape[-2], shape[-3]),
        )

    def _before_forward(self, module: object, args: object) -> None:
        self.forward_passes += 1
        if self._first_forward is None:
            self._first_forward = self._device_time()
            self._clock.mark()
            self._trace.stage("step 0")
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _after_step(self, show: Show | None, latents: Any) -> None:
        self._done += 1  # counted here: a callback's index begins anew with each chunk of a long video
        done, steps = self._done, self.call.num_inference_steps
        self._clock.mark()
        self._trace.stage(f"step {done}" if done < steps else "decode")
        if done >= steps:
            self._denoised = self._device_time()
        before, self._reused_blocks = self._reused_blocks, self.part.cache.reused_blocks()
        self._cached += self._reused_blocks > before
        self.watch.progress(done, self._cached)
        self._stop_if_cancelled()
        if show is not None:
            show(done, latents)
        if done >= steps:
            self._stop_between_blocks()

    def _stop_between_blocks(self) -> None:
        """Have a cancellation heard at each block of the networks around the steps, from now to the next step.

        Not within the steps: what draws a preview there would take it for a failure of its own.
        """
        if self._stops_around:
            blocks = self.part.blocks_around
            self._hooks += [block.register_forward_pre_hook(self._stop_if_cancelled) for block in blocks]

    def _stop_if_cancelled(self, module: object = None, args: object = None) -> None:
        if self.watch.cancelled:
            raise Stopped

    def _device_time(self) -> float:
        """Wait for the device, whose kernels run behind Python, and return the time, seconds of `perf_counter`.

        Called at the begin and the end of denoising and at the end of decoding, never at a step between them.
        """
        import torch

        if self._device.type == "cuda":
            # The stream of the kernels alone: another one may still copy the output before this one to the host.
            torch.cuda.current_stream(self._device).synchronize()
        elif self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()

    def _scheduled(self) -> int:
        """Return the number of timesteps of the call's scheduler."""
        return len(getattr(self.part.pipe.scheduler, "timesteps", ()))

    def _steps_run(self, record: Record | None) -> int:
        """Return the number of steps that ran.

        It is the planned number, or the scheduler's number of timesteps if the cache counted that many (PNDM has one
        more than planned).
        """
        planned = self.call.num_inference_steps
        if planned != self.call.arguments.get("num_inference_steps"):
            return planned  # `strength` has shortened the schedule, or each step predicts more than once
        scheduled = self._timesteps
        seen = record.executed_steps if record is not None else scheduled
        return scheduled if scheduled and seen == scheduled else planned


def _prompts_of(call: ImageCall) -> dict[str, str]:
    """Return the prompts of a call by field, the longest first, since one may contain another."""
    texts = {name: call.arguments.get(name) for name in ("prompt", "negative_prompt")}
    given = {name: text for name, text in texts.items() if isinstance(text, str)}
    return dict(sorted(given.items(), key=lambda item: -len(item[1])))


def _cached_seconds(record: Record | None, step_s: Sequence[float], steps: int) -> float | None:
    """Return the seconds of steps that reused blocks; None if the clock and the cache counted different steps."""
    if record is None:
        return 0.0
    if not len(step_s) == record.executed_steps == steps:
        return None
    return sum(step_s[step] for step in record.cached_steps())
