"""The queue and its one thread, over the real embedded pipeline in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from cache_dit_serving.errors import (
    DETAILS,
    ClientGone,
    InternalError,
    InvalidRequest,
    LoadError,
    NotReady,
    QueueFull,
    RateLimited,
)
from cache_dit_serving.jobs import metrics, model_loading, output_maker
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.media.encode import encode
from cache_dit_serving.media.kinds import OutputSpec
from cache_dit_serving.media.outputs import File
from cache_dit_serving.media.values import Media
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.pipeline.protocol import Loaded
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.in_process import EMBEDDED, load_again
from tests.support.waiting import wait_until


def generation(worker: PipelineWorker, name: str, **fields: object) -> Generation:
    request = GenerateRequest.model_validate({"prompt": "a cat", "seed": 1, "num_inference_steps": 6} | fields)
    return Generation(name, plan(resolve(request, worker.loaded().model)))


def one_running_one_waiting(worker: PipelineWorker) -> tuple[Generation, Generation]:
    running = generation(worker, "running", num_images=3, num_inference_steps=20)
    waiting = generation(worker, "waiting")
    worker.submit(running)
    worker.submit(waiting)
    wait_until(lambda: running.step > 0)
    return running, waiting


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return assemble(EMBEDDED, lambda what: None)  # warmed up: what the rates begin with


@pytest.fixture
def worker(loaded: Loaded) -> Iterator[PipelineWorker]:
    running = PipelineWorker.alone(lambda progress: loaded, max_queue=3)
    running.start()
    wait_until(lambda: running.state == "ready")
    yield running
    running.drain()
    running.join(60)


def test_generations_run_in_order_and_know_their_position(worker: PipelineWorker) -> None:
    order: list[str] = []
    generations = [generation(worker, name, num_images=3, num_inference_steps=8) for name in ("a", "b", "c")]
    for each in generations:
        each.result.add_done_callback(lambda done, name=each.id: order.append(name))  # type: ignore[misc]
        worker.submit(each)
    wait_until(lambda: generations[0].step > 0)
    assert [worker.position(each) for each in generations] == [0, 1, 2]
    for each in generations:
        assert len(each.result.result(60)) == 3
        assert each.step == each.steps == 24
    wait_until(lambda: len(order) == 3)  # a result is there before its callbacks are called
    assert order == ["a", "b", "c"]
    assert worker.position(generations[0]) is None


def test_a_full_queue_refuses_with_a_time_from_the_measured_rate(worker: PipelineWorker) -> None:
    first = generation(worker, "first", num_images=8, num_inference_steps=100)
    for index in range(5):  # so that the rate is that of these, not of the warm-up
        took = generation(worker, f"measured-{index}")
        worker.submit(took)
        took.result.result(60)
    worker.submit(first)
    wait_until(lambda: first.step > 0)
    waiting = [generation(worker, f"waiting-{index}") for index in range(3)]
    for each in waiting:
        worker.submit(each)
    with pytest.raises(QueueFull) as raised:
        worker.submit(generation(worker, "refused"))
    # The rest of the first, and no more: the others come later.
    whole = worker.rates.estimate(first.planned).seconds
    assert whole is not None
    assert raised.value.retry_after_s is not None
    assert 0 < raised.value.retry_after_s <= whole
    assert worker.wait_s() > sum(worker.rates.estimate(each.planned).seconds or 0.0 for each in waiting)
    for each in (first, *waiting):
        worker.cancel(each)


def test_a_caller_with_enough_is_told_when_one_of_its_own_ends(worker: PipelineWorker) -> None:
    def of(caller: str, name: str, **fields: object) -> Generation:
        return Generation(name, generation(worker, name, **fields).planned, caller=caller)

    def seconds(each: Generation) -> float:
        estimated = worker.rates.estimate(each.planned).seconds
        assert estimated is not None
        return estimated

    def told(caller: str) -> float:
        with pytest.raises(RateLimited) as raised:
            worker.submit(of(caller, "refused"), 1)
        assert raised.value.retry_after_s is not None
        return raised.value.retry_after_s

    running = of("a", "running", num_images=8, num_inference_steps=100)
    worker.submit(running)
    wait_until(lambda: running.step > 0)
    assert 0 < told("a") <= seconds(running)
    own = of("b", "own", num_images=8, num_inference_steps=100)
    worker.submit(own)
    assert told("b") > seconds(own)
    for each in (running, own):
        worker.cancel(each)


def test_what_fails_with_extra_arguments_is_the_callers_fault(worker: PipelineWorker) -> None:
    fine = generation(worker, "fine")
    broken = replace(
        fine.planned,
        calls=(replace(fine.planned.call, arguments=fine.planned.call.arguments | {"prompt_2": 7}),),
        recorded={"extra_args": {"prompt_2": 7}},
    )
    for call, error in ((broken, InvalidRequest), (replace(broken, recorded={}), InternalError)):
        failing = Generation("failing", call)
        worker.submit(failing)
        with pytest.raises(error):
            failing.result.result(120)
    worker.submit(fine)
    assert len(fine.result.result(120)) == 1


def test_cancelling_takes_a_waiting_generation_out_and_stops_a_running_one(worker: PipelineWorker) -> None:
    expected = generation(worker, "expected")
    worker.submit(expected)
    expected.result.result(60)
    running = generation(worker, "running", num_images=8, num_inference_steps=20)
    waiting, last = generation(worker, "waiting"), generation(worker, "last")
    for each in (running, waiting, last):
        worker.submit(each)
    worker.cancel(waiting)
    with pytest.raises(ClientGone):
        waiting.result.result(120)
    wait_until(lambda: running.step > 3)
    worker.cancel(running)
    with pytest.raises(ClientGone):
        running.result.result(60)
    assert running.step < running.steps
    assert waiting.started is None
    assert last.result.result(60)[0].content == expected.result.result()[0].content


def test_pictures_are_encoded_off_the_pipelines_thread(worker: PipelineWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def noting(*arguments: Any) -> File:
        threads.append(threading.current_thread().name)
        return encode(*arguments)

    monkeypatch.setattr(output_maker, "encode", noting)
    noted = generation(worker, "noted")
    worker.submit(noted)
    noted.result.result(120)
    assert threads[0].startswith("encode")


def test_raw_images_are_kept_for_a_comparison_alone(worker: PipelineWorker) -> None:
    single = generation(worker, "single")
    compared = Generation("compared", single.planned.compared())
    for each in (single, compared):
        worker.submit(each)
    assert [image.media for image in single.result.result(120)] == [None]
    cached, uncached = (image.media for image in compared.result.result(120))
    assert cached is not None
    assert uncached is not None
    assert cached.array.shape == uncached.array.shape == (96, 96, 3)


def test_a_pipeline_thread_that_breaks_says_so_and_leaves_nobody_waiting(worker: PipelineWorker) -> None:
    class Broken(Generation):
        @property
        def steps(self) -> int:  # read on the thread, outside what guards a generation
            raise RuntimeError("broken")

    good = generation(worker, "good")
    bad = Broken("bad", good.planned)
    worker.submit(bad)
    worker.submit(good)
    for each in (bad, good):
        with pytest.raises(NotReady, match="stopped working"):
            each.result.result(120)
    assert worker.state == "failed"


def test_what_fails_reaches_only_its_own_request(worker: PipelineWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(media: Media, output: OutputSpec, *arguments: Any) -> File:
        if output.format == "webp":
            raise RuntimeError("secret detail")
        return encode(media, output, *arguments)

    monkeypatch.setattr(output_maker, "encode", broken)
    bad = generation(worker, "bad", image_format="webp")
    good = generation(worker, "good")
    worker.submit(bad)
    worker.submit(good)
    with pytest.raises(Exception, match="log has the details"):
        bad.result.result(120)
    assert len(good.result.result(120)) == 1


def test_an_action_waits_for_the_running_generation_and_goes_before_those_that_wait(worker: PipelineWorker) -> None:
    running, waiting = one_running_one_waiting(worker)
    seen = worker.between_generations(lambda runner: (running.finished, waiting.started))
    finished, started = seen.result(120)
    assert finished is not None
    assert started is None
    with pytest.raises(ZeroDivisionError):
        worker.between_generations(lambda runner: 1 // 0).result(120)
    assert len(waiting.result.result(120)) == 1


def test_draining_lets_the_running_one_end_and_refuses_the_rest(worker: PipelineWorker) -> None:
    running, waiting = one_running_one_waiting(worker)
    worker.drain()
    with pytest.raises(NotReady, match="shutting down"):
        waiting.result.result(120)
    with pytest.raises(NotReady):
        worker.submit(waiting)
    assert len(running.result.result(60)) == 3


def test_draining_while_loading_ends_without_becoming_ready() -> None:
    proceed = threading.Event()

    def slow(progress: Callable[[str], None]) -> Loaded:
        proceed.wait(120)
        return load_again(progress)

    worker = PipelineWorker.alone(slow, max_queue=1)
    worker.start()
    worker.drain()
    assert not worker.join(), "it waited for the load"
    proceed.set()
    wait_until(worker.join)
    assert worker.state == "draining"


def test_broken_values_and_wrong_pairings_are_counted_and_logged(
    worker: PipelineWorker, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    def counts() -> tuple[float, float]:
        return metrics.NAN_DIFFS.labels("")._value.get(), metrics.PAIRING_MISMATCHES.labels("")._value.get()

    before = counts()
    planned = generation(worker, "planned").planned
    wrong = Generation("wrong", replace(planned, calls=(replace(planned.call, passes=2),)))
    worker.submit(wrong)
    assert wrong.result.result(60)[0].record.cache.redrawn == 1
    assert counts() == (before[0], before[1] + 1)
    runner: Any = worker.loaded().runner
    weight = runner._part.pipe.transformer.transformer_blocks[0].ff.net[2].weight
    whole = weight[0, 0].item()
    with torch.no_grad():
        weight[0, 0] = float("nan")
    broken = generation(worker, "broken")
    worker.submit(broken)
    try:
        with pytest.raises(InternalError, match="not numbers"):
            broken.result.result(60)
    finally:
        with torch.no_grad():
            weight[0, 0] = whole  # of the model of all tests here
    assert counts()[0] > before[0]
    assert "residual differences that are not numbers" in caplog.text


def test_a_lost_runner_is_loaded_anew_and_what_waits_runs_then() -> None:
    loads: list[Loaded] = []

    def load(progress: Callable[[str], None]) -> Loaded:
        if len(loads) == 2:
            raise LoadError("there is no third")
        loads.append(load_again(progress))
        return loads[-1]

    worker = PipelineWorker.alone(load, max_queue=3)
    worker.start()
    wait_until(lambda: worker.state == "ready")
    running, waiting = one_running_one_waiting(worker)
    loads[0].runner.ended = True  # type: ignore[misc]
    with pytest.raises(NotReady, match="processes were lost") as refused_at_once:  # while the generation still runs
        worker.loaded()
    assert refused_at_once.value.code == "loading"
    loads[0].runner.lost = "a test"  # type: ignore[misc]
    assert running.result.result(120)
    assert waiting.result.result(120)
    assert len(loads) == 2
    wait_until(lambda: worker.state == "ready")

    running, waiting = one_running_one_waiting(worker)
    asked = worker.between_generations(lambda runner: runner.flush())
    loads[1].runner.lost = "a test"  # type: ignore[misc]
    assert running.result.result(120)
    for refused in (waiting.result, asked):
        with pytest.raises(NotReady, match="cannot be served: there is no third"):
            refused.result(120)
    assert worker.state == "failed"


def test_a_runner_that_is_lost_during_a_drain_leaves_nobody_waiting() -> None:
    worker = PipelineWorker.alone(load_again, max_queue=3)
    worker.start()
    wait_until(lambda: worker.state == "ready")
    runner: Any = worker.loaded().runner
    running = generation(worker, "running", num_images=3, num_inference_steps=20)
    worker.submit(running)
    wait_until(lambda: running.step > 0)
    asked = worker.between_generations(lambda runner: runner.flush())
    worker.drain()
    runner.lost = "a test"
    assert running.result.result(120)
    with pytest.raises(NotReady, match="shutting down"):
        asked.result(60)
    assert worker.join(60)


class Hanging:
    """A runner whose pictures never come, as of a device that hangs; `proceed` lets them."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self.proceed = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def sample(self, *arguments: Any) -> Any:
        self.proceed.wait(300)
        return self._runner.sample(*arguments)


@pytest.fixture
def hanging() -> Iterator[tuple[PipelineWorker, Hanging]]:
    def load(progress: Callable[[str], None]) -> Loaded:
        loaded = load_again(progress)
        return replace(loaded, runner=Hanging(loaded.runner))

    worker = PipelineWorker.alone(load, max_queue=3, max_step_s=1)
    worker.start()
    wait_until(lambda: worker.state == "ready")
    runner: Any = worker.loaded().runner
    yield worker, runner
    runner.proceed.set()
    worker.drain()
    worker.thread._thread.join(60)


def test_a_pipeline_that_stands_still_is_told_counted_and_ready_again_once_it_goes_on(
    hanging: tuple[PipelineWorker, Hanging], caplog: pytest.LogCaptureFixture
) -> None:
    worker, runner = hanging
    stalls = metrics.STALLS._value.get()
    stuck = generation(worker, "stuck")
    worker.submit(stuck)
    wait_until(lambda: worker.stalled)
    wait_until(lambda: "the pipeline stands still for 1 s" in caplog.text)
    assert metrics.STALLS._value.get() == stalls + 1
    [summary] = [each for each in caplog.records if "stands still" in each.message]
    assert "self.proceed.wait" in summary.stack  # type: ignore[attr-defined]
    assert worker.state == "failed"
    with pytest.raises(NotReady, match="stands still for more than 1 s"):
        worker.loaded()
    runner.proceed.set()
    assert stuck.result.result(60)
    wait_until(lambda: worker.state == "ready")
    assert not worker.stalled


def test_a_drain_does_not_wait_for_what_stands_still(hanging: tuple[PipelineWorker, Hanging]) -> None:
    worker, _ = hanging
    stuck = generation(worker, "stuck")
    worker.submit(stuck)
    wait_until(lambda: worker.queue().running)
    worker.drain()
    assert not worker.join(), "it waited"
    with pytest.raises(NotReady, match="shutting down"):
        stuck.result.result(60)


def test_a_load_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(model_loading, "RETRY_S", 0.01)
    attempts, failed = [], []

    def load(progress: Callable[[str], None]) -> Loaded:
        attempts.append(time.monotonic())
        if len(attempts) < 3:
            raise LoadError(f"attempt {len(attempts)}{DETAILS}") from OSError("no such\nhost")
        return load_again(progress)

    running = PipelineWorker.alone(load, max_queue=3, on_failed=lambda: failed.append(running.reason), retries=True)
    running.start()
    wait_until(lambda: running.state == "ready")
    assert failed == [f"attempt 1{DETAILS}", f"attempt 2{DETAILS}"]
    assert attempts[2] - attempts[1] >= 0.02
    assert "failed: attempt 2: OSError: no such host" in caplog.messages
    running.drain()
    running.join(60)


def test_the_wait_for_a_further_attempt_ends_with_a_drain() -> None:
    def load(progress: Callable[[str], None]) -> Loaded:
        raise LoadError("never")

    running = PipelineWorker.alone(load, max_queue=3, retries=True)
    running.start()
    wait_until(lambda: running.state == "failed")
    with pytest.raises(NotReady) as raised:
        running.loaded()
    assert raised.value.retry_after_s == model_loading.RETRY_S
    running.drain()
    assert running.state == "draining"
    running.thread._thread.join(60)
    assert not running.thread._thread.is_alive()
