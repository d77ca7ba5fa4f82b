"""The outputs of a generation: drawn on the pipeline's thread, and encoded on others while the next one is denoised."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from cache_dit_serving.errors import InternalError, InvalidRequest, OutOfMemory, ServingError, without_frames
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.generation import Generation, OutputFile, TakenOver
from cache_dit_serving.jobs.generation_watch import GenerationWatch
from cache_dit_serving.jobs.output_warnings import output_warnings
from cache_dit_serving.jobs.previews import PreviewMaker
from cache_dit_serving.jobs.safety import Safety
from cache_dit_serving.jobs.served_model import ServedModel
from cache_dit_serving.jobs.spans import failed_span, output_spans, queue_span
from cache_dit_serving.jobs.watchdog import Watchdog
from cache_dit_serving.media.blank import blank_of
from cache_dit_serving.media.encode import encode
from cache_dit_serving.media.images import check_finite
from cache_dit_serving.pipeline.protocol import Sampled, Stopped
from cache_dit_serving.planning.call import ImageCall
from cache_dit_serving.planning.planned import not_engaged
from cache_dit_serving.safety.check import CHECKS_AT_ONCE
from cache_dit_serving.schemas.answers import RequestWarning

logger = logging.getLogger(__name__)

ENCODER_THREADS = 2
OUTPUTS_BEHIND = 2 * CHECKS_AT_ONCE
"""Outputs that are drawn, and not encoded and checked yet; the pipeline waits before it draws more."""
SIGN_OF_LIFE_S = 1.0
"""Seconds between two signs of life of a pipeline that waits for such outputs."""


class OutputMaker:
    """Makes the outputs of one generation at a time."""

    def __init__(
        self,
        watchdog: Watchdog,
        preview_every: int,
        *,
        safety: Safety,
        give_way: Callable[[ServedModel], bool],
    ) -> None:
        """
        Args:
            watchdog: gets a sign of life at each step.
            preview_every: as of :class:`PipelineThread`.
            safety: sees each output before it is delivered.
            give_way: called where an output of a model needs more memory than is free: has another model give way;
                False: none can.
        """
        self._give_way = give_way
        self._watchdog = watchdog
        self._preview_every = preview_every
        self._safety = safety
        threads = CHECKS_AT_ONCE if safety.sees_outputs else ENCODER_THREADS  # most of them wait for the check then
        self._encoders = ThreadPoolExecutor(threads, thread_name_prefix="encode")
        self._previews = ThreadPoolExecutor(1, thread_name_prefix="preview")
        self._room = threading.Semaphore(OUTPUTS_BEHIND)

    def make(self, generation: Generation) -> None:
        """Draw the outputs of a generation, which ends once they are encoded; on the pipeline's thread.

        Its model, which is awake, is corrected by them; its rates learn from them, and its shadow runs get those that
        are to be drawn again.
        """
        began = time.perf_counter()
        if not generation.begin():
            generation.fail(TakenOver())
            return
        speed, model = generation.planned.cache.speed, generation.model.name
        metrics.STAGE_SECONDS.labels("queue", speed, model).observe(generation.waited_s)
        queue_span(generation)
        outcome = "succeeded"
        previews = PreviewMaker(generation, self._previews, self._preview_every)
        try:
            encoding = [
                self._begin_output(generation, index, previews) for index in range(len(generation.planned.calls))
            ]
        except ServingError as error:
            outcome = "cancelled" if generation.cancelled else error.code
            generation.finish()
            failed_span(generation, error.code)
            logger.info("stopped: %s", error.message)
            generation.fail(error)
            return
        except Exception:
            outcome = "failed"
            generation.finish()
            failed_span(generation, outcome)
            logger.exception("the pipeline failed")
            generation.fail(_failure(generation))
            return
        finally:
            busy = time.perf_counter() - began
            metrics.PIPELINE_BUSY_SECONDS.labels(model).inc(busy)
            metrics.GENERATIONS.labels(outcome, speed, model).inc()
        generation.finish()
        logger.info("done: %d image(s), %d steps, %.2f s", len(encoding), generation.steps, busy)
        _resolve_when_encoded(generation, encoding, previews.last)

    def close(self) -> None:
        """Wait until all that was drawn is encoded."""
        self._encoders.shutdown(wait=True)
        self._previews.shutdown(wait=True)

    def _begin_output(self, generation: Generation, index: int, previews: PreviewMaker) -> Future[OutputFile]:
        """Draw an output, and return it as it will be once it is encoded and checked."""
        # A slow safety check would let the outputs behind the pipeline fill the memory.
        while not self._room.acquire(timeout=SIGN_OF_LIFE_S):
            self._watchdog.sign()
            if generation.cancelled:
                raise generation.stop_error
        try:
            drawn = self._draw(generation, index, previews)
            encoding = self._encoders.submit(copy_context().run, self._encode, generation, index, drawn)
        except BaseException:
            self._room.release()
            raise
        encoding.add_done_callback(lambda _: self._room.release())
        return encoding

    def _draw(self, generation: Generation, index: int, previews: PreviewMaker) -> Sampled:
        if generation.cancelled:
            raise generation.stop_error
        model, call = generation.model, generation.planned.calls[index]
        watch = GenerationWatch(generation, index, previews, self._watchdog)
        try:
            drawn = self._sampled(model, call, watch)
        except Stopped:
            if call.cache.settings is None and watch.step_s is not None:
                model.rates.learn_stopped(call, watch.step_s)
            raise generation.stop_error from None
        self._watchdog.sign()
        report = drawn.record.cache
        metrics.observe_image(drawn.record, model.name)
        model.loading.correct(drawn.record)
        if report.nan_diffs:
            logger.error("residual differences that are not numbers: the model's values are broken")
        for warning in output_warnings(call, drawn.record):
            generation.warn(warning)
        if call.cache.strict and not report.engaged:
            raise not_engaged(report)
        return drawn

    def _sampled(self, model: ServedModel, call: ImageCall, watch: GenerationWatch) -> Sampled:
        """Draw an output, once other models have given way where the memory does not suffice."""
        while True:
            try:
                return model.loading.runner.sample(call, watch)
            except OutOfMemory as error:
                metrics.OUT_OF_MEMORY.labels(model.name).inc()
                refused = without_frames(error)
            if not self._give_way(model):
                raise refused

    def _encode(self, generation: Generation, index: int, drawn: Sampled) -> OutputFile:
        began = time.perf_counter()
        planned = generation.planned
        call, output = planned.calls[index], planned.output
        media = drawn.media
        check_finite(media)
        warnings = [warning.model_dump() for warning in generation.warnings]
        content, extension = encode(media, output, planned.parameters(call), warnings)
        encode_s = time.perf_counter() - began
        metrics.STAGE_SECONDS.labels("encode_output", call.cache.speed, generation.model.name).observe(encode_s)
        generation.model.rates.learn(call, drawn.record, encode_s)
        output_spans(generation, index, drawn.record, encode_s)
        verdict = self._safety.check_output(generation, index, (content, extension))
        if verdict.decision == "blank":
            because = f": {verdict.reason}" if verdict.reason else ""
            message = f"output {index} is blank; this server's safety check refused what was made{because}"
            warning = RequestWarning(param="prompt", code="blanked", message=message)
            generation.warn(warning)
            media, output = blank_of(media), output.of_blank()
            warnings.append(warning.model_dump())
            content, extension = encode(media, output, planned.parameters(call), warnings)
        else:
            generation.model.shadows.offer(generation, index, media, drawn.record)
        return OutputFile(content, extension, encode_s, drawn.record, media if output.keep_media else None)


def _failure(generation: Generation) -> ServingError:
    """Return the caller's error for an exception of the pipeline, which the log has."""
    extra = generation.planned.recorded.get("extra_args")
    if extra is None:
        return InternalError()
    names = ", ".join(extra)
    return InvalidRequest(f"the pipeline fails with these extra_args ({names}); leave them out", param="extra_args")


def _resolve_when_encoded(
    generation: Generation, outputs: list[Future[OutputFile]], last_preview: Future[None] | None
) -> None:
    """Resolve a generation with its outputs in their order, or with the first failure among them.

    Args:
        last_preview: done before, so that no preview follows the end.
    """
    waited: list[Future[Any]] = [*outputs, *([last_preview] if last_preview is not None else [])]
    left = len(waited)
    lock = threading.Lock()

    def one_done(_: Future[Any]) -> None:
        nonlocal left
        with lock:
            left -= 1
            if left:
                return
        try:
            generation.resolve([output.result() for output in outputs])
        except ServingError as error:
            generation.fail(error)
        except Exception:
            logger.exception("encoding failed")
            generation.fail(InternalError())

    for each in waited:
        each.add_done_callback(one_done)
