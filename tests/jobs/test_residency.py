"""Sleep and wake of the worker's model, over the real embedded pipeline in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from cache_dit_serving.config.residency import SleepLevel
from cache_dit_serving.config.shadow import ShadowSettings
from cache_dit_serving.engine.shadowing import Shadowing
from cache_dit_serving.errors import InternalError, InvalidRequest, LoadError, NotReady, WakeFailed
from cache_dit_serving.jobs import metrics, model_loading
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.residency import SleepPolicy
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.media.inputs import NO_INPUTS
from cache_dit_serving.pipeline import sleeping
from cache_dit_serving.pipeline.protocol import Loaded
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.in_process import inside, load_again
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

LEVELS: tuple[SleepLevel, ...] = ("host", "disk")


@pytest.fixture(autouse=True)
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands in for the GPU."""
    monkeypatch.setattr(sleeping, "why_not_in_host_memory", lambda device: None)


@contextmanager
def serving(load: Callable[[Callable[[str], None]], Loaded], **options: Any) -> Iterator[PipelineWorker]:
    worker = PipelineWorker.alone(load, max_queue=8, **options)
    worker.start()
    wait_until(lambda: worker.state == "ready")
    yield worker
    worker.drain()
    assert worker.join(30)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_again()


@pytest.fixture
def worker(loaded: Loaded) -> Iterator[PipelineWorker]:
    with serving(lambda progress: loaded) as running:
        yield running
        running.wake().result(30)


@pytest.fixture
def reloading() -> Iterator[PipelineWorker]:
    """A worker that loads its model each time."""
    with serving(load_again) as running:
        yield running


def generation(worker: PipelineWorker, name: str = "a request", **fields: object) -> Generation:
    request = GenerateRequest.model_validate({"prompt": "a cat", "seed": 1, "num_inference_steps": 6} | fields)
    return Generation(name, plan(resolve(request, worker.loaded().model)))


def level_of(worker: PipelineWorker) -> SleepLevel | None:
    return worker.asleep


def drawn(worker: PipelineWorker, **fields: object) -> tuple[bytes, Generation]:
    made = generation(worker, "a request", **fields)
    worker.submit(made)
    (file,) = made.result.result(60)
    return file.content, made


def one_running_one_waiting(worker: PipelineWorker) -> tuple[Generation, Generation]:
    running, waiting = generation(worker, "running", num_inference_steps=60), generation(worker, "waiting")
    worker.submit(running)
    worker.submit(waiting)
    wait_until(lambda: running.step > 0)
    return running, waiting


@pytest.mark.parametrize("level", LEVELS)
def test_the_next_request_wakes_the_model_and_draws_the_same(reloading: PipelineWorker, level: SleepLevel) -> None:
    worker, wakes = reloading, metrics.WAKE_SECONDS.labels(level, "")._sum
    before, awake = drawn(worker)
    slept = worker.sleep(level).result(30)
    assert (slept.level, worker.asleep, worker.state) == (level, level, "ready")
    assert slept.seconds > 0
    assert metrics.ASLEEP.labels(level, "")._value.get() == 1
    assert worker.loaded().runner.facts.device == "cpu"
    known, counted = worker.wait_s(), wakes.get()
    assert known > 0
    after, woken = drawn(worker)
    assert after == before
    assert worker.asleep is None
    assert awake.wake_s == 0 < woken.wake_s
    assert wakes.get() - counted == pytest.approx(woken.wake_s)
    assert woken.started is not None
    assert woken.waited_s + woken.wake_s == pytest.approx(woken.started - woken.submitted)
    assert metrics.ASLEEP.labels(level, "")._value.get() == metrics.ASLEEP_FREED_BYTES.labels("")._value.get() == 0
    assert worker.wait_s() == 0
    # What waking took is what the next estimate says.
    worker.sleep(level).result(30)
    assert worker.wait_s() == pytest.approx(woken.wake_s)
    assert drawn(worker)[0] == before


def test_an_idle_model_goes_to_sleep_by_itself(loaded: Loaded) -> None:
    with serving(lambda progress: loaded, sleep=SleepPolicy(0.2, "host")) as worker:
        before, _ = drawn(worker)
        wait_until(lambda: worker.asleep == "host")
        again, woken = drawn(worker)
        assert again == before
        assert woken.wake_s > 0
        wait_until(lambda: worker.asleep == "host")
        worker.wake().result(30)


def test_a_model_that_cannot_sleep_by_itself_stays_awake_and_the_log_says_why(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sleeping, "why_not_in_host_memory", lambda device: "host: not here")
    with serving(lambda progress: loaded, sleep=SleepPolicy(0.05, "host")) as worker:
        wait_until(lambda: "server.sleep_after_s: the model stays awake: host: not here" in caplog.text)
        assert worker.asleep is None
        assert drawn(worker)


def test_a_request_that_waits_keeps_the_model_awake(worker: PipelineWorker) -> None:
    running, waiting = one_running_one_waiting(worker)
    assert worker.sleep("host").result(30).level is None
    assert running.finished is not None, "it did not wait for the running one"
    assert worker.asleep is None
    assert waiting.result.result(30)
    assert waiting.wake_s == 0


@pytest.mark.parametrize("how", ["request", "wake"])
def test_what_comes_while_the_model_goes_to_sleep_undoes_it(
    worker: PipelineWorker, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    began, go_on = threading.Event(), threading.Event()
    runner = inside(worker.loaded())
    sleep = runner.sleep

    def slow(stop: Callable[[], bool]) -> int | None:
        began.set()
        assert go_on.wait(30)
        return sleep(stop)

    monkeypatch.setattr(runner, "sleep", slow)
    before, _ = drawn(worker)
    asked = worker.sleep("host")
    assert began.wait(30)
    made = generation(worker)
    woken = worker.wake() if how == "wake" else None
    if woken is None:
        worker.submit(made)
    go_on.set()
    assert asked.result(30).level is None
    assert worker.asleep is None
    if woken is not None:
        assert woken.result(30) == 0
        worker.submit(made)
    assert made.result.result(30)[0].content == before


def test_sleeping_twice_is_sleeping_once_and_the_disk_is_deeper_than_the_hosts_memory(
    reloading: PipelineWorker,
) -> None:
    worker = reloading
    before, _ = drawn(worker)
    both = [worker.sleep("host") for _ in range(2)]
    first, second = (asked.result(30) for asked in both)
    assert (first.level, second.level) == ("host", "host")
    assert second.seconds == second.freed_bytes == 0
    freed = metrics.ASLEEP_FREED_BYTES.labels("")._value.get()
    assert freed > 0
    assert worker.sleep("disk").result(30).level == "disk"
    assert metrics.ASLEEP_FREED_BYTES.labels("")._value.get() == freed
    assert worker.sleep("host").result(30).level == "disk"
    assert worker.sleep(None).result(30).level == "disk"
    assert worker.wake().result(60) > 0
    assert worker.wake().result(60) == 0
    assert drawn(worker)[0] == before


@pytest.mark.parametrize("level", LEVELS)
def test_a_flush_does_not_wake_the_model_and_what_needs_the_weights_does(
    reloading: PipelineWorker, level: SleepLevel
) -> None:
    worker = reloading
    worker.sleep(level).result(30)
    assert worker.between_generations(lambda runner: runner.flush(), needs_weights=False).result(30) == (0, 0)
    assert level_of(worker) == level
    pipe: Any = worker.between_generations(lambda runner: runner).result(60)
    assert level_of(worker) is None
    assert next(pipe._part.pipe.transformer.parameters()).untyped_storage().nbytes() > 0


def test_weights_that_do_not_fit_now_fail_the_request_by_name_and_the_next_one_wakes_them(
    worker: PipelineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = drawn(worker)
    worker.sleep("host").result(30)
    real = torch.Tensor.copy_

    def full(*args: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.Tensor, "copy_", full)
    failed = generation(worker)
    worker.submit(failed)
    with pytest.raises(WakeFailed, match="do not fit into the device's free memory") as refused:
        failed.result.result(30)
    assert (refused.value.status, refused.value.retry_after_s) == (503, 30)
    with pytest.raises(WakeFailed):
        worker.wake().result(30)
    assert (worker.asleep, worker.state) == ("host", "ready")
    assert worker.thread._watchdog._since is None, "an idle thread would count as stalled"
    monkeypatch.setattr(torch.Tensor, "copy_", real)
    assert drawn(worker)[0] == before


def test_a_wake_that_fails_otherwise_fails_its_request_alone(
    worker: PipelineWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before, _ = drawn(worker)
    worker.sleep("host").result(30)
    runner = inside(worker.loaded())
    wake = runner.wake

    def lost(sign: Callable[[], None]) -> None:
        raise ValueError("a fault")

    monkeypatch.setattr(runner, "wake", lost)
    failed = generation(worker)
    worker.submit(failed)
    with pytest.raises(InternalError):
        failed.result.result(30)
    with pytest.raises(InternalError):
        worker.wake().result(30)
    assert "a fault" in caplog.text
    monkeypatch.setattr(runner, "wake", wake)
    assert drawn(worker)[0] == before


def test_a_sleep_that_fails_leaves_the_model_awake(worker: PipelineWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = drawn(worker)

    def fail(device: torch.device) -> None:
        raise ValueError("a fault")

    monkeypatch.setattr(sleeping, "give_back", fail)
    with pytest.raises(ValueError, match="a fault"):
        worker.sleep("host").result(30)
    assert worker.asleep is None
    assert drawn(worker)[0] == before


def test_a_runner_that_is_lost_while_the_model_sleeps_is_loaded_anew(reloading: PipelineWorker) -> None:
    worker = reloading
    before, _ = drawn(worker)
    worker.sleep("host").result(30)
    runner: Any = worker.loaded().runner
    runner.lost = "a test"
    wait_until(lambda: worker.state == "ready" and worker.loaded().runner is not runner)
    assert worker.asleep is None
    assert drawn(worker)[0] == before


def test_a_model_that_is_gone_from_the_disk_fails_with_the_reason() -> None:
    loads: list[int] = []

    def load(progress: Callable[[str], None]) -> Loaded:
        loads.append(0)
        if len(loads) > 1:
            raise LoadError("the folder is gone")
        return load_again(progress)

    with serving(load) as worker:
        request, action = generation(worker), None
        worker.sleep("disk").result(30)
        worker.submit(request)
        with pytest.raises(NotReady, match="cannot be served: the folder is gone"):
            request.result.result(30)
        assert (worker.state, worker.asleep) == ("failed", None)
        with pytest.raises(NotReady):
            action = worker.wake()
        assert action is None


def test_a_model_that_is_gone_from_the_disk_is_tried_again_where_that_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_loading, "RETRY_S", 0.05)
    loads: list[int] = []

    def load(progress: Callable[[str], None]) -> Loaded:
        loads.append(0)
        if len(loads) == 2:
            raise LoadError("the folder is gone")
        return load_again(progress)

    with serving(load, retries=True) as worker:
        before, _ = drawn(worker)
        worker.sleep("disk").result(30)
        assert drawn(worker)[0] == before
        assert len(loads) == 3


def test_a_request_that_was_cancelled_does_not_wake_the_model(worker: PipelineWorker) -> None:
    worker.sleep("host").result(30)
    began, go_on = threading.Event(), threading.Event()

    def hold(runner: Any) -> None:
        began.set()
        assert go_on.wait(30)

    held = worker.between_generations(hold, needs_weights=False)
    assert began.wait(30)
    request = generation(worker)
    worker.submit(request)
    worker.cancel(request)
    go_on.set()
    held.result(30)
    with pytest.raises(Exception, match="nobody waits"):
        request.result.result(30)
    assert worker.asleep == "host"


@pytest.mark.parametrize("level", LEVELS)
def test_a_drain_ends_a_model_that_is_asleep(level: SleepLevel) -> None:
    with serving(load_again) as worker:
        worker.sleep(level).result(30)
    assert worker.state == "draining"


def test_a_drain_while_the_model_is_loaded_again_refuses_its_request() -> None:
    loading, go_on, loads = threading.Event(), threading.Event(), []

    def load(progress: Callable[[str], None]) -> Loaded:
        loads.append(0)
        if len(loads) > 1:
            loading.set()
            assert go_on.wait(30)
        return load_again(progress)

    with serving(load) as worker:
        request = generation(worker)
        worker.sleep("disk").result(30)
        worker.submit(request)
        assert loading.wait(30)
        assert worker.state == "ready"
        later = generation(worker)
        worker.submit(later)
        assert worker.wait_s() > 0
        worker.drain()
        go_on.set()
        for refused in (request, later):
            with pytest.raises(NotReady, match="shutting down"):
                refused.result.result(30)


def shadowed(worker: PipelineWorker) -> None:
    """Draw a request that is to be drawn again without the cache."""
    request = GenerateRequest.model_validate({"prompt": "a cat", "seed": 1, "num_inference_steps": 40})
    resolved = resolve(request, worker.loaded().model)
    planned = plan(resolved, NO_INPUTS)
    chosen = Shadowing(1.0, lambda: 0.0).chosen(resolved, NO_INPUTS, planned)
    assert chosen is not None
    made = Generation("shadowed", chosen.with_calls(planned))
    worker.submit(made)
    made.result.result(60)


def test_a_shadow_run_that_may_begin_waits_for_the_model_to_wake(loaded: Loaded) -> None:
    with serving(lambda progress: loaded, shadow=ShadowSettings(share=1, at_most=1)) as worker:
        found: list[Any] = []
        worker.shadows.compare_with(found.append)
        shadowed(worker)
        worker.sleep("host").result(30)  # stops a run that has begun
        wait_until(lambda: worker.shadows.wait_s() == 0)
        assert worker.between_generations(lambda runner: None, needs_weights=False).result(30) is None
        assert (worker.asleep, worker.shadows.waiting, found) == ("host", 1, [])
        worker.wake().result(30)
        wait_until(lambda: found)


def test_shadow_runs_that_wait_do_not_keep_the_model_awake(loaded: Loaded) -> None:
    later = ShadowSettings(share=1, at_most=1e-6)
    with serving(lambda progress: loaded, shadow=later, sleep=SleepPolicy(0.2, "host")) as worker:
        shadowed(worker)
        wait_until(lambda: worker.asleep == "host")
        assert worker.shadows.waiting == 1
        worker.wake().result(30)


def test_a_level_that_the_model_does_not_have_is_refused(
    worker: PipelineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleeping, "why_not_in_host_memory", lambda device: "host: not here")
    with pytest.raises(InvalidRequest, match="host: not here"):
        worker.sleep("host").result(30)
    assert worker.asleep is None
