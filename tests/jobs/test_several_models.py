"""Several models at one thread, of which not all fit into memory at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY

from cache_dit_serving.config.settings import LoraSettings
from cache_dit_serving.errors import InternalError, LoadError, NeedsMemory, NotReady, OutOfMemory, WakeFailed
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.pipeline_thread import PipelineThread
from cache_dit_serving.jobs.residency import SleepPolicy
from cache_dit_serving.jobs.residents import MemoryBounds, Residents
from cache_dit_serving.jobs.served_model import ServedModel
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.media.inputs import NO_INPUTS
from cache_dit_serving.pipeline import sleeping
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.pipeline.protocol import Loaded
from cache_dit_serving.pipeline.shared_weights import SharedWeights
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.in_process import EMBEDDED, known, load_again, unwarmed
from tests.support.loras import with_loras
from tests.support.waiting import wait_until

SETTINGS = unwarmed(EMBEDDED)
Load = Callable[[Callable[[str], None]], Loaded]


@pytest.fixture(autouse=True)
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands in for the GPU."""
    monkeypatch.setattr(sleeping, "why_not_in_host_memory", lambda device: None)


def really(progress: Callable[[str], None]) -> Loaded:
    return load_again(progress)


@pytest.fixture(scope="module")
def model_bytes() -> int:
    loaded = really(lambda what: None)
    size = sum(each.bytes for each in loaded.runner.facts.components)
    assert size > 1_000_000
    return size


@contextmanager
def serving(
    loads: dict[str, Load], bounds: MemoryBounds, *, always: tuple[str, ...] = (), level: Any = "host", **options: Any
) -> Iterator[dict[str, PipelineWorker]]:
    thread = PipelineThread(max_queue=8, bounds=bounds, **options)
    workers = {
        name: PipelineWorker(
            thread,
            thread.add(
                load,
                name=name,
                on_request=True,
                resident="always" if name in always else "on-demand",
                sleep=SleepPolicy(None, level),
            ),
        )
        for name, load in loads.items()
    }
    thread.start()
    wait_until(lambda: thread.state in ("ready", "failed"))
    yield workers
    thread.drain()
    assert thread.join(30)


def loaded(worker: PipelineWorker) -> PipelineWorker:
    """The worker, once a request has loaded its model."""
    if (load := worker.load()) is not None:
        load.result(60)
    return worker


def generation(worker: PipelineWorker, seed: int = 1, steps: int = 3) -> Generation:
    request = GenerateRequest.model_validate({"prompt": "a cat", "seed": seed, "num_inference_steps": steps})
    resolved = resolve(request, loaded(worker).loaded().model)
    return Generation(f"{worker.model.name} {seed}", plan(resolved, NO_INPUTS))


def drawn(worker: PipelineWorker, seed: int = 1) -> bytes:
    each = generation(worker, seed)
    worker.submit(each)
    return each.result.result(60)[0].content


def places(workers: dict[str, PipelineWorker]) -> dict[str, str]:
    """Places of the models: awake, host, disk, or the state of one that is not loaded."""
    told: dict[str, str] = {}
    for name, worker in workers.items():
        known = worker.state in ("ready", "draining")
        told[name] = (worker.asleep or "awake") if known else worker.state
    return told


def test_the_default_one_is_loaded_at_the_start_and_others_by_their_first_request(model_bytes: int) -> None:
    with serving({"a": really, "b": really}, MemoryBounds()) as workers:
        assert places(workers) == {"a": "awake", "b": "unloaded"}
        with pytest.raises(NotReady, match="its first request loads it"):
            workers["b"].loaded()
        assert drawn(workers["b"]) == drawn(workers["a"])
        assert places(workers) == {"a": "awake", "b": "awake"}, "both fit"


def test_the_one_used_longest_ago_gives_way_to_host_memory_and_from_there_to_disk(model_bytes: int) -> None:
    bounds = MemoryBounds(device=int(1.5 * model_bytes), host=int(1.5 * model_bytes))
    with serving({"a": really, "b": really, "c": really}, bounds) as workers:
        first = drawn(workers["a"])
        assert drawn(workers["b"]) == first
        assert places(workers) == {"a": "host", "b": "awake", "c": "unloaded"}
        assert drawn(workers["c"]) == first
        assert places(workers) == {"a": "disk", "b": "host", "c": "awake"}, "host memory has room for one"
        for name, after in (
            ("b", {"a": "disk", "b": "awake", "c": "host"}),
            ("a", {"a": "awake", "b": "host", "c": "disk"}),
        ):
            assert drawn(workers[name]) == first, "bit for bit, from wherever the weights came"
            assert places(workers) == after


def test_what_the_files_tell_of_a_models_size_makes_room_before_its_first_load(model_bytes: int) -> None:
    seen: list[dict[str, str]] = []
    thread = PipelineThread(max_queue=8, bounds=MemoryBounds(device=int(1.5 * model_bytes)))

    def watched(progress: Callable[[str], None]) -> Loaded:
        seen.append(places(workers))
        return really(progress)

    workers = {
        name: PipelineWorker(
            thread,
            thread.add(load, name=name, on_request=True, resident="on-demand", expected_bytes=lambda: model_bytes),
        )
        for name, load in {"a": really, "b": watched}.items()
    }
    thread.start()
    wait_until(lambda: thread.state == "ready")
    loaded(workers["b"])
    assert seen == [{"a": "disk", "b": "loading"}]
    thread.drain()
    assert thread.join(30)


def test_models_with_equal_components_count_these_once(model_bytes: int) -> None:
    shared = SharedWeights()
    mono = LoraSettings(name="mono", path="embedded/monochrome", scale=0.7, fuse=True)
    loads: dict[str, Load] = {
        name: partial(assemble, settings, before=known(), shared=shared.of(name))
        for name, settings in {"a": SETTINGS, "b": SETTINGS, "other": with_loras(SETTINGS, mono)}.items()
    }
    bounds = MemoryBounds(device=model_bytes + 1000, host=2 * model_bytes)
    with serving(loads, bounds) as workers:
        first = drawn(workers["a"])
        assert drawn(workers["b"]) == first
        assert places(workers) == {"a": "awake", "b": "awake", "other": "unloaded"}, "no weight is held twice"
        other = drawn(workers["other"])
        assert other != first
        assert places(workers) == {"a": "host", "b": "host", "other": "awake"}, "its transformer is one more"
        assert sum(each.model.host_bytes for each in workers.values()) < model_bytes, "one transformer"
        assert drawn(workers["b"]) == first
        assert places(workers) == {"a": "host", "b": "awake", "other": "host"}
        assert workers["other"].model.host_bytes < 0.8 * model_bytes, "the encoders stayed on the device for b"
        assert drawn(workers["a"]) == first
        assert places(workers) == {"a": "awake", "b": "awake", "other": "host"}
        for name in ("b", "a", "other"):
            workers[name].sleep("disk").result(30)
        assert [drawn(workers[name]) for name in ("other", "a", "b")] == [other, first, first]


def test_a_model_that_is_always_resident_never_gives_way(model_bytes: int) -> None:
    bounds = MemoryBounds(device=int(2.5 * model_bytes))
    with serving({"a": really, "b": really, "c": really}, bounds, always=("a",)) as workers:
        drawn(workers["b"])
        drawn(workers["c"])
        assert places(workers) == {"a": "awake", "b": "host", "c": "awake"}
        drawn(workers["b"])
        assert places(workers) == {"a": "awake", "b": "awake", "c": "host"}


def test_a_model_that_comes_back_from_disk_is_neither_tried_nor_warmed_up_again(model_bytes: int) -> None:
    stages: list[str] = []

    def first(progress: Callable[[str], None]) -> Loaded:
        return assemble(EMBEDDED, progress)

    def again(progress: Callable[[str], None], before: Loaded) -> Loaded:
        def noted(stage: str) -> None:
            stages.append(stage)
            progress(stage)

        return assemble(EMBEDDED, noted, before)

    worker = PipelineWorker.alone(first, max_queue=8, again=again)
    worker.start()
    wait_until(lambda: worker.state == "ready", 60)
    planned, before = worker.loaded().model, drawn(worker)
    worker.sleep("disk").result(30)
    assert drawn(worker) == before
    assert worker.loaded().model == planned
    assert stages
    assert not [stage for stage in stages if "trying" in stage or "warming" in stage]
    worker.drain()
    assert worker.join(30)


def test_other_files_in_the_place_of_a_model_are_tried_again(model_bytes: int) -> None:
    stages: list[str] = []
    before = really(lambda stage: None)
    other = replace(before, runner=cast(Any, SimpleNamespace(facts=replace(before.runner.facts, dtype="bfloat16"))))
    assert assemble(SETTINGS, stages.append, before=other).model.traits == before.model.traits
    assert [stage for stage in stages if "trying" in stage]


def test_a_generation_is_told_the_switch_and_the_queue_counts_it(model_bytes: int) -> None:
    with serving({"a": really, "b": really}, MemoryBounds(device=model_bytes), level="disk") as workers:
        loaded(workers["b"])
        assert places(workers) == {"a": "disk", "b": "awake"}
        switch_s = workers["a"].wait_s()
        assert switch_s > 0
        assert workers["b"].wait_s() == 0
        each = generation(workers["a"])
        workers["a"].submit(each)
        each.result.result(60)
        assert each.wake_s > 0
        assert workers["b"].wait_s() > 0


def test_metrics_tell_the_models_apart(model_bytes: int) -> None:
    def counted(metric: str, **labels: str) -> dict[str, float]:
        found = {
            name: REGISTRY.get_sample_value(f"cache_dit_serving_{metric}", labels | {"model": f"counted {name}"})
            for name in "ab"
        }
        return {name: each for name, each in found.items() if each is not None}

    with serving({"counted a": really, "counted b": really}, MemoryBounds(device=model_bytes)) as workers:
        before = counted("switches_total")
        drawn(workers["counted b"])
        drawn(workers["counted b"], seed=2)
        assert counted("asleep", level="host") == {"a": 1, "b": 0}
        drawn(workers["counted a"])
        assert counted("asleep", level="host") == {"a": 0, "b": 1}, "the one does not overwrite the other"
        outcome = {"outcome": "succeeded", "speed": workers["counted a"].loaded().model.speeds.default_speed}
    assert counted("generations_total", **outcome) == {"a": 1, "b": 2}
    assert counted("switches_total") == {"a": before["a"] + 1, "b": before["b"] + 1}
    assert counted("stage_seconds_count", stage="denoise", speed=outcome["speed"]) == {"a": 1, "b": 2}


def test_a_model_that_fails_to_load_leaves_the_others_serving(
    model_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = threading.Event()

    def vanished(progress: Callable[[str], None]) -> Loaded:
        if not there.is_set():
            raise LoadError("its folder has vanished")
        return really(progress)

    with serving({"a": really, "b": vanished}, MemoryBounds()) as workers:
        with pytest.raises(NotReady, match="its folder has vanished"):
            loaded(workers["b"])
        assert workers["b"].state == "failed"
        assert workers["b"].load() is None, "it is not tried again at once"
        first = drawn(workers["a"])
        there.set()
        monkeypatch.setattr("cache_dit_serving.jobs.model_loading.RETRY_S", 0.0)
        assert drawn(workers["b"]) == first


def test_a_model_on_disk_whose_files_vanish_fails_its_own_requests_alone(model_bytes: int) -> None:
    vanished = threading.Event()

    def once(progress: Callable[[str], None]) -> Loaded:
        if vanished.is_set():
            raise LoadError("its folder has vanished")
        return really(progress)

    with serving({"a": really, "b": once}, MemoryBounds(device=model_bytes), level="disk") as workers:
        waiting = generation(workers["b"])
        drawn(workers["a"])
        vanished.set()
        other = generation(workers["a"])
        workers["b"].submit(waiting)
        workers["a"].submit(other)
        assert other.result.result(60)
        with pytest.raises(NotReady, match="its folder has vanished"):
            waiting.result.result(60)
        assert places(workers) == {"a": "disk", "b": "failed"}
        assert drawn(workers["a"])


def test_a_load_that_lacks_memory_has_another_give_way(model_bytes: int) -> None:
    thread_of: dict[str, PipelineWorker] = {}

    def narrow(progress: Callable[[str], None]) -> Loaded:
        if thread_of["a"].asleep is None:
            raise NeedsMemory("the model does not fit into memory")
        return really(progress)

    with serving({"a": really, "b": narrow}, MemoryBounds()) as workers:
        thread_of |= workers
        drawn(workers["b"])
        assert places(workers) == {"a": "host", "b": "awake"}
        drawn(workers["a"])


def test_a_load_that_lacks_memory_beside_models_that_stay_fails_alone(model_bytes: int) -> None:
    def narrow(progress: Callable[[str], None]) -> Loaded:
        raise NeedsMemory("the model does not fit into memory")

    with serving({"a": really, "b": narrow}, MemoryBounds(), always=("a",)) as workers:
        with pytest.raises(NotReady, match="does not fit into memory"):
            loaded(workers["b"])
        assert drawn(workers["a"])


def test_an_output_that_lacks_memory_has_another_give_way_once_and_for_all(
    model_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving({"a": really, "b": really}, MemoryBounds()) as workers:
        first = drawn(workers["b"])
        runner = workers["a"].loaded().runner
        sample = runner.sample

        def narrow(call: Any, watch: Any) -> Any:
            if workers["b"].asleep is None:
                raise OutOfMemory
            return sample(call, watch)

        monkeypatch.setattr(runner, "sample", narrow)
        assert drawn(workers["a"]) == first
        assert places(workers) == {"a": "awake", "b": "host"}
        drawn(workers["b"])
        assert places(workers) == {"a": "host", "b": "awake"}, "both together were too much, and are not tried again"


def test_an_output_that_lacks_memory_alone_fails_and_nothing_gives_way(
    model_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(call: Any, watch: Any) -> Any:
        raise OutOfMemory

    with serving({"a": really, "b": really}, MemoryBounds(device=model_bytes)) as workers:
        monkeypatch.setattr(workers["a"].loaded().runner, "sample", never)
        each = generation(workers["a"])
        workers["a"].submit(each)
        with pytest.raises(OutOfMemory):
            each.result.result(60)
        assert drawn(workers["b"])


def test_a_model_that_cannot_be_moved_goes_to_disk(model_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(stop: Callable[[], bool]) -> int:
        raise RuntimeError("an error of the driver")

    with serving({"a": really, "b": really}, MemoryBounds(device=model_bytes)) as workers:
        monkeypatch.setattr(workers["a"].loaded().runner, "sleep", broken)
        assert drawn(workers["b"]) == drawn(workers["a"])
        assert places(workers) == {"a": "awake", "b": "host"}


def test_a_thread_that_breaks_leaves_nobody_waiting_for_a_load(
    model_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(residents: Residents, model: ServedModel) -> float:
        raise RuntimeError("broken")

    monkeypatch.setattr("cache_dit_serving.jobs.model_loading.RETRY_S", 0.0)
    with serving({"a": really, "b": really}, MemoryBounds()) as workers:
        monkeypatch.setattr(Residents, "make_ready", broken)
        load = workers["b"].load()
        assert load is not None
        with pytest.raises(InternalError):
            load.result(30)
        wait_until(lambda: workers["b"].state == "failed")
        assert workers["b"].load() is None, "no thread would load it"
        with pytest.raises(NotReady, match="stopped working"):
            workers["b"].loaded()


def test_a_wake_that_lacks_memory_has_another_give_way(model_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({"a": really, "b": really}, MemoryBounds()) as workers:
        drawn(workers["b"])
        workers["a"].sleep("host").result(30)
        runner = workers["a"].loaded().runner
        wake = runner.wake

        def narrow(sign: Callable[[], None]) -> None:
            if workers["b"].asleep is None:
                raise OutOfMemory
            wake(sign)

        monkeypatch.setattr(runner, "wake", narrow)
        drawn(workers["a"])
        assert places(workers) == {"a": "awake", "b": "host"}
        monkeypatch.setattr(runner, "wake", lambda sign: (_ for _ in ()).throw(OutOfMemory()))
        drawn(workers["b"])
        workers["a"].sleep("host").result(30)
        each = generation(workers["a"])
        workers["a"].submit(each)
        with pytest.raises(WakeFailed):
            each.result.result(60)
        monkeypatch.undo()
        assert drawn(workers["a"]), "asleep as before, and wakes once there is room"
