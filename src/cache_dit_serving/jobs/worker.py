"""The one thread that owns the pipeline, and the bounded queue in front of it.

Every door of the server enters here. The thread loads the model, then runs one generation at a time; between two of
them it does what must not overlap with any (flushing the cache). Encoding happens on other threads while the next
picture is denoised.
"""

from __future__ import annotations

import gc
import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from typing import Any, Literal, TypeVar

from cache_dit_serving.errors import (
    DETAILS,
    InternalError,
    InvalidRequest,
    LoadError,
    NotReady,
    OutOfMemory,
    QueueFull,
    RateLimited,
    ServingError,
    logged,
)
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.generation import Encoded, Generation, TakenOver, always
from cache_dit_serving.jobs.output_warnings import output_warnings
from cache_dit_serving.jobs.previews import PreviewMaker
from cache_dit_serving.jobs.queue import Order, Queue
from cache_dit_serving.jobs.rates import Rates
from cache_dit_serving.jobs.shared import CallerCounts
from cache_dit_serving.jobs.watchdog import Watchdog
from cache_dit_serving.logs import noted
from cache_dit_serving.media.encode import encode
from cache_dit_serving.media.images import check_finite
from cache_dit_serving.pipeline.protocol import Drawn, Loaded, Runner, Stopped, TakePreview
from cache_dit_serving.planning.planned import not_engaged
from cache_dit_serving.schemas.answers import QueueReport

logger = logging.getLogger(__name__)

T = TypeVar("T")
State = Literal["loading", "ready", "failed", "draining"]

ENCODER_THREADS = 2
# A generation that lasts says in the log how far it is, this often.
PROGRESS_S = 10.0
LOST_S = 1.0
"""Between two looks at an idle runner."""
RETRY_S = 5.0
"""Seconds after which a failed load is tried again; twice as many after each further one."""
MOST_RETRY_S = 300.0


class PipelineWorker:
    """Loads a model on a thread of its own and runs generations on it, one at a time."""

    def __init__(
        self,
        load: Callable[[Callable[[str], None]], Loaded],
        *,
        max_queue: int,
        order: Order = "arrival",
        preview_every: int = 0,
        max_step_s: float = math.inf,
        counts: CallerCounts | None = None,
        on_ready: Callable[[Loaded], None] = lambda loaded: None,
        on_failed: Callable[[], None] = lambda: None,
        retries: bool = False,
    ) -> None:
        """
        Args:
            counts: generations of each caller at all workers; None: this one counts its own.
            preview_every: denoising steps from one preview to the next for followers who do not say how many they want;
                0: none.
            on_failed: called when the model cannot be loaded, or not loaded again.
            retries: whether a load that fails is tried again, with a growing wait.
        """
        self._load = load
        self._on_failed = on_failed
        self._counts = counts
        self._retries = retries
        self._max_queue = max_queue
        self._preview_every = preview_every
        self._on_ready = on_ready
        self._changed = threading.Condition()
        self._actions: deque[tuple[Callable[[Runner], None], Future[Any]]] = deque()
        self._running: Generation | None = None
        self._loaded: Loaded | None = None
        self._state: State = "loading"
        self._reason: str | None = "starting"
        self._stopping = False
        self.rates = Rates()
        self._waiting = Queue(order, lambda call: self.rates.estimate(call).seconds)
        self._watchdog = Watchdog(min(max_step_s, threading.TIMEOUT_MAX), self._stalled_or_not)
        self._encoders = ThreadPoolExecutor(ENCODER_THREADS, thread_name_prefix="encode")
        self._previews = ThreadPoolExecutor(1, thread_name_prefix="preview")
        self._thread = threading.Thread(target=self._run, name="pipeline", daemon=True)

    def start(self) -> None:
        """Begin loading; returns at once."""
        metrics.MAX_QUEUE.set(self._max_queue)
        metrics.tell_state(self._state)
        self._watchdog.start()
        self._thread.start()

    @property
    def state(self) -> State:
        """The worker's state. A lost runner counts as loading at once, before the pipeline's thread loads anew; a
        pipeline that stands still counts as failed until it goes on."""
        loaded = self._loaded
        if self._state == "ready" and self.stalled:
            return "failed"
        lost = self._state == "ready" and loaded is not None and loaded.runner.ended
        return "loading" if lost else self._state

    @property
    def reason(self) -> str | None:
        """What it is doing while loading; what went wrong where it failed."""
        if self._state == "ready" and self.stalled:
            return f"the pipeline stands still for more than {self._watchdog.max_step_s:g} s"
        if self._state == "ready" and self.state == "loading":
            return "the model's processes were lost"
        return self._reason

    @property
    def stalled(self) -> bool:
        """Whether the pipeline's thread has stood still for longer than a step may take."""
        return self._watchdog.stalled

    def loaded(self) -> Loaded:
        """The loaded model, which any thread may read; running it is this worker's alone.

        Raises:
            NotReady: it is loading, failed to load, or the server is shutting down.
        """
        if self._loaded is None or self.state != "ready":
            raise self._not_ready()
        return self._loaded

    def no_previews(self, pipeline_class: str) -> str | None:
        """Why there are no previews of what a pipeline of the model draws; None where there are, or may be."""
        return self._loaded.runner.no_previews(pipeline_class) if self._loaded is not None else None

    def wait_s(self, priority: int = 0) -> float:
        """Seconds until a generation submitted now begins, by what those before it are known to take."""
        with self._changed:
            return self._seconds_behind([each for each in self._waiting if each.priority >= priority])

    def queue(self) -> QueueReport:
        """The queue as it is now."""
        running = self._running
        return QueueReport(
            waiting=len(self._waiting),
            running=running is not None,
            step=running.step if running else 0,
            steps=running.steps if running else 0,
        )

    def submit(
        self, generation: Generation, max_live: int | None = None, may_start: Callable[[], bool] = always
    ) -> None:
        """Admit a generation to the queue.

        Args:
            max_live: how many of its caller's may wait or run.
            may_start: called on the pipeline's thread when it is to start; False if another server has it by then.

        Raises:
            RateLimited: there are as many of its caller's.
            QueueFull: with the time after which there should be room, from the measured rate.
            NotReady: it is loading, failed to load, or the server is shutting down.
        """
        with self._changed:
            if self.state != "ready":
                raise self._not_ready()
            running = [self._running] if self._running is not None else []
            live = sum(each.caller == generation.caller for each in (*self._waiting, *running))
            if max_live is not None and live >= max_live:
                raise self._too_many_live(live)
            if not self._waiting.room_for(generation.caller, self._max_queue):
                full = len(self._waiting) >= self._max_queue
                raise QueueFull(
                    f"{len(self._waiting)} generations are waiting, as many as this server lets wait; come back later"
                    if full
                    else f"this key's share of the queue of {self._max_queue} is taken; come back later",
                    retry_after_s=self._seconds_until_room(),
                )
            self._count(generation, max_live)
            generation.admit(may_start)
            self._waiting.add(generation)
            metrics.QUEUE_WAITING.set(len(self._waiting))
            self._changed.notify()

    def _count(self, generation: Generation, max_live: int | None) -> None:
        """Count a generation among those of its caller at all workers, until it ends.

        Raises:
            RateLimited: there are as many of its caller's as it may have.
        """
        if self._counts is None or not generation.caller:
            return
        counts = self._counts
        number, live = counts.begin(generation.caller, max_live)
        if number is not None:
            generation.result.add_done_callback(lambda _: counts.end(number))
        elif max_live is not None and live >= max_live:
            raise self._too_many_live(live)

    def _too_many_live(self, live: int) -> RateLimited:
        return RateLimited(
            f"{live} generations of this key wait or run, as many as it may have; come back later",
            retry_after_s=self._seconds_until_room(),
        )

    def position(self, generation: Generation) -> int | None:
        """0 while it runs, 1 and more while it waits, None once it is done."""
        with self._changed:
            if generation is self._running:
                return 0
            return list(self._waiting).index(generation) + 1 if generation in self._waiting else None

    def seconds_before(self, generation: Generation) -> float | None:
        """Until one that waits begins, by what those before it are known to take; None for one that does not wait."""
        with self._changed:
            if generation not in self._waiting:
                return None
            waiting = list(self._waiting)
            return self._seconds_behind(waiting[: waiting.index(generation)])

    def seconds_left(self, generation: Generation) -> float | None:
        """Until the one that runs ends, by what such ones took; None for another, or where that is not known."""
        if generation is not self._running or (seconds := self.rates.estimate(generation.planned).seconds) is None:
            return None
        return seconds * (1 - generation.step / max(1, generation.steps))

    def cancel(self, generation: Generation) -> None:
        """Take it from the queue, or stop it after the step it is at. Does nothing to one that is done."""
        with self._changed:
            generation.cancel()
            if generation in self._waiting:
                self._waiting.remove(generation)
                metrics.QUEUE_WAITING.set(len(self._waiting))
                generation.fail(generation.stop_error)

    def between_generations(self, action: Callable[[Runner], T]) -> Future[T]:
        """Run `action` on the pipeline's thread as soon as no generation runs.

        Raises:
            NotReady: it is loading, failed to load, or the server is shutting down.
        """
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def run(runner: Runner) -> None:
            try:
                future.set_result(action(runner))
            except Exception as error:
                logger.exception("an action on the pipeline failed")
                future.set_exception(error)

        with self._changed:
            if self.state != "ready":
                raise self._not_ready()
            self._actions.append((run, future))
            self._changed.notify()
        return future

    def drain(self) -> None:
        """Let the running generation end; refuse those that wait and all that come."""
        with self._changed:
            if self._state == "draining":
                return
            self._state, self._reason = "draining", "the server is shutting down"
            refused = self._waiting.clear()
            metrics.QUEUE_WAITING.set(0)
            metrics.tell_state(self._state)
            self._stopping = True
            self._changed.notify()
        for generation in refused:
            generation.fail(self._not_ready())
        if self.stalled:
            self._refuse_what_is_left()
        logger.info(
            "draining: %s, %d waiting refused",
            "one generation runs to its end" if self._running else "idle",
            len(refused),
        )

    def join(self, timeout_s: float | None = None) -> bool:
        """After :meth:`drain`, wait until the running generation has ended.

        Returns:
            False if the thread still loads or draws then, or stands still.
        """
        end = time.monotonic() + (threading.TIMEOUT_MAX if timeout_s is None else timeout_s)
        while self._loaded is not None and self._thread.is_alive() and not self.stalled:
            if (left_s := end - time.monotonic()) <= 0:
                break
            self._thread.join(min(left_s, LOST_S))
        if self._thread.is_alive():
            return False
        self._encoders.shutdown(wait=True)
        self._previews.shutdown(wait=True)
        return True

    def give_up(self) -> None:
        """After :meth:`drain`, stop the running generation after the step it is at: its time is over."""
        with self._changed:
            if self._running is not None:
                self._running.give_up(self._not_ready())

    def _stalled_or_not(self) -> None:
        metrics.tell_state(self.state)
        if self._stopping and self.stalled:
            # A drain does not wait for what stands still.
            self._refuse_what_is_left()

    def _run(self) -> None:
        try:
            self._load_and_serve()
        finally:
            self._watchdog.close()

    def _load_and_serve(self) -> None:
        if not self._load_model():
            return
        assert self._loaded is not None
        try:
            while self._serve(self._loaded.runner):
                if not self._load_anew():
                    return
        except Exception as error:
            # Nothing should come here; if something does, a server that says ready must not let requests wait for ever.
            logger.exception("the pipeline's thread failed")
            self._fail(f"the pipeline stopped working{DETAILS}", error)
            self._refuse_what_is_left()

    def _load_anew(self) -> bool:
        """After a runner was lost; whether there is a model again."""
        assert self._loaded is not None
        runner = self._loaded.runner
        with self._changed:
            if not self._stopping:
                self._state, self._reason = "loading", f"the model's processes were lost ({runner.lost})"
                metrics.tell_state(self._state)
        logger.error("the model's processes were lost (%s)", runner.lost)
        runner.close()
        if self._stopping:
            return False
        loaded = self._load_model()
        if not loaded:
            self._refuse_what_is_left()
        return loaded

    def _refuse_what_is_left(self) -> None:
        with self._changed:
            left = [*self._waiting.clear(), *([self._running] if self._running else [])]
            self._running = None
            actions, self._actions = self._actions, deque()
        for generation in left:
            if not generation.result.done():
                generation.fail(self._not_ready())
        for _, future in actions:
            future.set_exception(self._not_ready())

    def _serve(self, runner: Runner) -> bool:
        """Run what comes; returns whether there is more to come, since the runner was lost."""
        while True:
            with self._changed:
                # A runner of several processes may be lost while it is idle.
                while not self._changed.wait_for(lambda: self._stopping or self._actions or self._waiting, LOST_S):
                    if runner.lost is not None:
                        return True
                if runner.lost is not None:
                    return True
                action = self._actions.popleft()[0] if self._actions else None
                if action is None and not self._waiting:
                    runner.close()
                    return False
                generation = self._running = self._waiting.next() if action is None else None
                metrics.QUEUE_WAITING.set(len(self._waiting))
            if action is not None:
                with self._watchdog.watching():
                    action(runner)
            elif generation is not None:
                with (
                    noted(request_id=generation.id, caller=generation.caller),
                    self._watchdog.watching(generation.id),
                ):
                    self._generate(runner, generation)
            with self._changed:
                self._running = None
            # Or the last request's pictures would stay in memory until the next one comes.
            del generation

    def _load_model(self) -> bool:
        """Load the model, again and again if it is to be retried; whether there is one."""
        waits = _retry_waits() if self._retries else iter(())
        while not self._load_once():
            if self._stopping or (wait_s := next(waits, None)) is None:
                return False
            gc.collect()  # what the attempt left in cycles holds memory that the next one needs
            logger.info("the model is loaded again in %.0f s", wait_s)
            with self._changed:
                if self._changed.wait_for(lambda: self._stopping, wait_s):
                    return False
                self._state, self._reason = "loading", "loading again"
        return True

    def _load_once(self) -> bool:
        began = time.perf_counter()

        def progress(what: str) -> None:
            logger.info("%s (%.1f s)", what, time.perf_counter() - began)
            with self._changed:
                if self._state == "loading":
                    self._reason = what

        try:
            self._loaded = self._load(progress)
        except LoadError as error:
            self._fail(str(error), error.__cause__)
            return False
        except Exception as error:
            # Whatever it was, it must not end the process: the supervisor would start it again for ever.
            logger.exception("loading failed")
            self._fail(f"the model could not be loaded{DETAILS}", error)
            return False
        for call, record in self._loaded.warm_up:
            self.rates.learn(call, record)
        with self._changed:
            if self._state != "loading":
                return False
            self._state, self._reason = "ready", None
            metrics.tell_state(self._state)
        logger.info("ready after %.1f s", time.perf_counter() - began)
        try:
            self._on_ready(self._loaded)
        except Exception:
            logger.exception("what should follow on ready failed")
        return True

    def _fail(self, reason: str, cause: BaseException | None = None) -> None:
        logger.error("failed: %s", logged(reason, cause))
        with self._changed:
            if not self._stopping:
                self._state, self._reason = "failed", reason
                metrics.tell_state(self._state)
        self._on_failed()

    def _generate(self, runner: Runner, generation: Generation) -> None:
        began = time.perf_counter()
        if not generation.begin():
            generation.fail(TakenOver())
            return
        speed = generation.planned.cache.speed
        metrics.STAGE_SECONDS.labels("queue", speed).observe(generation.waited_s)
        outcome = "succeeded"
        previews = PreviewMaker(generation, self._previews, self._preview_every)
        try:
            encoding = [
                self._encoders.submit(
                    copy_context().run, self._encode, generation, index, self._draw(runner, generation, index, previews)
                )
                for index in range(len(generation.planned.calls))
            ]
        except ServingError as error:
            outcome = "cancelled" if generation.cancelled else error.code
            generation.finish()
            logger.info("stopped: %s", error.message)
            generation.fail(error)
            return
        except Exception:
            outcome = "failed"
            generation.finish()
            logger.exception("the pipeline failed")
            generation.fail(_failure(generation))
            return
        finally:
            busy = time.perf_counter() - began
            metrics.PIPELINE_BUSY_SECONDS.inc(busy)
            metrics.GENERATIONS.labels(outcome, speed).inc()
        generation.finish()
        logger.info("done: %d image(s), %d steps, %.2f s", len(encoding), generation.steps, busy)
        _resolve_when_encoded(generation, encoding, previews.last)

    def _encode(self, generation: Generation, index: int, drawn: Drawn) -> Encoded:
        began = time.perf_counter()
        planned = generation.planned
        call, output = planned.calls[index], planned.output
        check_finite(drawn.media)
        warnings = [warning.model_dump() for warning in generation.warnings]
        content, extension = encode(drawn.media, output, planned.parameters(call), warnings)
        encode_s = time.perf_counter() - began
        metrics.STAGE_SECONDS.labels("encode_output", call.cache.speed).observe(encode_s)
        self.rates.learn(call, drawn.record, encode_s)
        return Encoded(content, extension, encode_s, drawn.record, drawn.media if output.keep_media else None)

    def _draw(self, runner: Runner, generation: Generation, index: int, previews: PreviewMaker) -> Drawn:
        if generation.cancelled:
            raise generation.stop_error
        call = generation.planned.calls[index]
        watch = _Watch(generation, index, previews, self._watchdog)
        try:
            drawn = runner.sample(call, watch)
        except Stopped:
            if call.cache.settings is None and watch.step_s is not None:
                self.rates.learn_stopped(call, watch.step_s)
            raise generation.stop_error from None
        except OutOfMemory:
            metrics.OUT_OF_MEMORY.inc()
            raise
        self._watchdog.sign()
        report = drawn.record.cache
        metrics.observe_image(drawn.record)
        if self._loaded is not None:
            self._loaded = replace(self._loaded, model=drawn.record.corrected(self._loaded.model))
        if report.nan_diffs:
            logger.error("residual differences that are not numbers: the model's values are broken")
        for warning in output_warnings(call, drawn.record):
            generation.warn(warning)
        if call.cache.strict and not report.engaged:
            raise not_engaged(report)
        return drawn

    def _seconds_behind(self, waiting: list[Generation]) -> float:
        """Until the running generation and those that wait have ended, by what such ones are known to take."""
        return self._seconds_until_room() + sum(self.rates.estimate(each.planned).seconds or 0.0 for each in waiting)

    def _seconds_until_room(self) -> float:
        """Until the running generation ends and the next leaves the queue."""
        running = self._running
        if running is None:
            return 0.0
        steps = max(1, running.steps)
        left = (1 if running.cancelled else steps - running.step) / steps
        return left * (self.rates.estimate(running.planned).seconds or 1.0)

    def _not_ready(self) -> NotReady:
        messages = {
            "loading": f"the model is loading: {self.reason}",
            "failed": f"the model cannot be served: {self.reason}",
            "draining": "the server is shutting down",
            "ready": "the server is ready",
        }
        # A failed load that is not retried does not mend itself: no time to come back after.
        state = self.state
        retry_after_s = {"loading": 5.0, "draining": 10.0, "failed": RETRY_S if self._retries else None}.get(state)
        return NotReady(messages[state], code=state, retry_after_s=retry_after_s)


def _retry_waits() -> Iterator[float]:
    """Seconds before each further attempt."""
    return (min(RETRY_S * 2**attempt, MOST_RETRY_S) for attempt in itertools.count())


class _Watch:
    """Notes in a generation how far it is, says so in the log now and then, and has it stopped once it is cancelled."""

    def __init__(self, generation: Generation, index: int, previews: PreviewMaker, watchdog: Watchdog) -> None:
        self._generation = generation
        self._previews = previews
        self._watchdog = watchdog
        self._before = generation.planned.call.num_inference_steps * index
        self._cached_before = generation.cached_steps
        self._last_logged = time.monotonic()
        self._first: float | None = None
        self.step_s: float | None = None
        """Seconds of a step so far; None before the second one."""

    @property
    def cancelled(self) -> bool:
        return self._generation.cancelled

    def progress(self, done: int, cached: int) -> None:
        self._watchdog.sign()
        generation = self._generation
        step = self._before + min(done, generation.planned.call.num_inference_steps)
        generation.progress(step, self._cached_before + cached)
        if time.monotonic() - self._last_logged > PROGRESS_S:
            self._last_logged = time.monotonic()
            logger.info("at step %d of %d", generation.step, generation.steps)
        now = time.perf_counter()
        if self._first is None:
            self._first = now
        elif done > 1:
            self.step_s = (now - self._first) / (done - 1)

    def preview(self, done: int, take: TakePreview) -> None:
        self._previews.offer(self._before + done, done, take)


def _failure(generation: Generation) -> ServingError:
    """What a pipeline's exception, which the log has, means to the caller."""
    extra = generation.planned.recorded.get("extra_args")
    if extra is None:
        return InternalError()
    names = ", ".join(extra)
    return InvalidRequest(f"the pipeline fails with these extra_args ({names}); leave them out", param="extra_args")


def _resolve_when_encoded(
    generation: Generation, outputs: list[Future[Encoded]], last_preview: Future[None] | None
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
