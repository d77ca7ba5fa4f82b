"""Shadow runs over the real embedded pipeline in this process: what they compare, and that nobody waits for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_dit_serving.config.shadow import ShadowSettings
from cache_dit_serving.errors import InternalError
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.shadow_runs import MOST_ATTEMPTS, MOST_WAITING, Shadow, ShadowRuns
from cache_dit_serving.jobs.watchdog import Watchdog
from cache_dit_serving.media.values import ImageOutput
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.pipeline.protocol import Loaded, Sampled, Stopped, Watch
from cache_dit_serving.planning.call import ImageCall
from cache_dit_serving.planning.loras import LoraChoice
from tests.support.in_process import EMBEDDED, inside, load, tiny_wan, unwarmed
from tests.support.shadows import Compared, check_measured_as_compared, comparing
from tests.support.waiting import wait_until

SETTINGS = unwarmed(EMBEDDED)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return assemble(SETTINGS, lambda what: None)


@pytest.fixture
def compared(loaded: Loaded) -> Iterator[Compared]:
    with comparing(loaded) as worker:
        yield worker


def array(drawn: Any) -> np.ndarray[Any, Any]:
    return np.asarray(drawn.arrived().array)


def test_a_cached_output_is_drawn_again_without_the_cache_and_with_the_same_seed(compared: Compared) -> None:
    lossless = compared.generation("lossless", speed="lossless")
    assert lossless.planned.shadow is None
    reference = compared.drawn(lossless)[0].content
    (file,) = compared.drawn(compared.generation("cached", speed="fast", num_inference_steps=12))
    wait_until(lambda: compared.found)
    (shadow,) = compared.found
    assert (shadow.id, shadow.missing) == ("cached", [])
    assert shadow.cached is not None
    assert shadow.reference is not None
    assert shadow.cached.record.cache.cached_steps == file.record.cache.cached_steps > 0
    assert shadow.reference.record.cache.cached_steps == 0
    assert shadow.reference.record.seed == shadow.cached.record.seed == 1
    assert not np.array_equal(array(shadow.cached), array(shadow.reference))
    # The reference is what the caller would have got without the cache, and later pictures are undisturbed.
    assert compared.drawn(compared.generation("again", speed="lossless"))[0].content == reference
    again = compared.drawn(compared.generation("cached again", shadowed=False, speed="fast", num_inference_steps=12))
    assert again[0].content == file.content


def test_a_speed_with_steps_of_its_own_is_compared_with_the_lossless_request(compared: Compared) -> None:
    generation = compared.generation("fast", speed="fast", num_inference_steps=None)
    assert generation.planned.shadow is not None
    calls = generation.planned.shadow
    usual = compared.worker.loaded().model.usual_steps
    assert (calls.cached.num_inference_steps, calls.reference.num_inference_steps) == (10, usual)


def test_a_run_gives_way_to_a_request_after_the_step_it_is_at(compared: Compared) -> None:
    begun = threading.Event()
    steps: list[int] = []
    runner = compared.worker.loaded().runner
    sample = runner.sample

    def watched(call: ImageCall, watch: Watch) -> Sampled:
        if call.cache.settings is None and call.num_inference_steps == 16:
            steps.append(0)
            progress = watch.progress

            def count(done: int, cached: int) -> None:
                steps[-1] = done
                progress(done, cached)
                if done == 3 and len(steps) == 1:
                    begun.set()
                    assert arrived.wait(30)

            watch.progress = count  # type: ignore[method-assign]
        return sample(call, watch)

    arrived = threading.Event()
    runner.sample = watched  # type: ignore[method-assign]
    try:
        compared.drawn(compared.generation("cached", speed="fast", num_inference_steps=16))
        assert begun.wait(60)
        request = compared.generation("request", shadowed=False)
        compared.worker.submit(request)
        arrived.set()
        request.result.result(60)
        assert steps[0] == 3, "the run went on although a request waited"
        wait_until(lambda: compared.found)
        assert steps == [3, 16], "the run is begun anew"
    finally:
        runner.sample = sample  # type: ignore[method-assign]


def test_a_run_gives_way_to_a_request_within_the_decoding(compared: Compared) -> None:
    runner = inside(compared.worker.loaded())
    decoder = runner._part.pipe.vae.decoder
    request = compared.generation("request", shadowed=False)
    generation = compared.generation("cached", speed="fast")
    assert generation.planned.shadow is not None
    reference = generation.planned.shadow.reference
    sample, runs = runner.sample, []

    def watched(call: ImageCall, watch: Watch) -> Sampled:
        if call is not reference:
            return sample(call, watch)
        runs.append("begins")

        def request_comes(*_: object) -> None:
            if len(runs) == 1:
                compared.worker.submit(request)

        comes = decoder.mid_block.register_forward_pre_hook(request_comes)
        ends = decoder.conv_out.register_forward_hook(lambda *_: runs.append("decoding ends"))
        try:
            return sample(call, watch)
        finally:
            comes.remove()
            ends.remove()

    runner.sample = watched  # type: ignore[method-assign]
    try:
        compared.drawn(generation)
        wait_until(lambda: compared.found, 60)
    finally:
        runner.sample = sample  # type: ignore[method-assign]
    assert runs == ["begins", "begins", "decoding ends"], "it stops at the request, and is begun anew"
    again = compared.generation("again", shadowed=False)
    assert compared.drawn(again)[0].content == request.result.result(60)[0].content


def test_a_video_is_drawn_again_and_measured(tmp_path: Path) -> None:
    with comparing(load(unwarmed(tiny_wan(tmp_path)))) as compared:
        sample = check_measured_as_compared(compared, num_inference_steps=6)
    assert "flicker" in sample.values


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Taking:
    """A runner each of whose outputs takes as long as it says, or raises."""

    def __init__(self, clock: Clock, sampled: Sampled, seconds: float) -> None:
        self.clock, self.sampled, self.seconds = clock, sampled, seconds
        self.error: Exception | None = None
        self.loaded: dict[str, None] = {}

    def loras(self) -> dict[str, None]:
        return self.loaded

    def sample(self, call: ImageCall, watch: Watch) -> Sampled:
        self.clock.seconds += self.seconds
        if self.error is not None:
            raise self.error
        return self.sampled


@pytest.fixture
def sampled(compared: Compared) -> tuple[Generation, Sampled]:
    generation = compared.generation("one", speed="fast", num_inference_steps=12)
    (file,) = compared.drawn(generation)
    return generation, Sampled(lambda: ImageOutput(np.zeros((8, 8, 3), np.uint8)), file.record)


def runs_of(clock: Clock, at_most: float) -> ShadowRuns:
    settings = ShadowSettings(share=1, at_most=at_most)
    return ShadowRuns(settings, threading.Condition(), Watchdog(60, lambda: None), now=clock)


def test_all_runs_stay_under_their_share_of_the_time(sampled: tuple[Generation, Sampled]) -> None:
    generation, output = sampled
    clock = Clock()
    runs, runner = runs_of(clock, 0.05), Taking(clock, output, 2.0)
    runs.begin()
    while clock.seconds < 4000:
        runs.offer(generation, 0, output.media, output.record)
        wait_s = runs.wait_s()
        assert wait_s is not None
        clock.seconds += max(wait_s, 0.1)
        if runs.wait_s() == 0:
            runs.run(runner, lambda: False)  # type: ignore[arg-type]
    assert 0.04 < runs.took <= 0.05


def test_the_newest_outputs_wait_and_the_oldest_give_way(sampled: tuple[Generation, Sampled]) -> None:
    generation, output = sampled
    clock = Clock()
    found: list[Shadow] = []
    runs = runs_of(clock, 1)
    runs.compare_with(found.append)
    for number in range(MOST_WAITING + 3):
        runs.offer(Generation(f"{number}", generation.planned), 0, output.media, output.record)
    assert runs.waiting == MOST_WAITING
    while runs.waiting:
        runs.run(Taking(clock, output, 0.1), lambda: False)  # type: ignore[arg-type]
    assert [shadow.id for shadow in found] == [f"{number}" for number in reversed(range(3, MOST_WAITING + 3))]


def test_a_run_that_is_stopped_too_often_is_given_up_and_one_that_fails_at_once(
    sampled: tuple[Generation, Sampled],
) -> None:
    generation, output = sampled
    clock = Clock()
    runs, runner = runs_of(clock, 1), Taking(clock, output, 0.1)
    for error, attempts in ((Stopped(), MOST_ATTEMPTS), (InternalError(), 1), (ValueError(), 1)):
        runner.error = error
        runs.offer(generation, 0, output.media, output.record)
        for _ in range(attempts):
            assert runs.waiting == 1
            runs.run(runner, lambda: False)  # type: ignore[arg-type]
        assert runs.waiting == 0


def test_a_run_loads_no_lora_that_has_left_the_memory(sampled: tuple[Generation, Sampled]) -> None:
    generation, output = sampled
    calls = generation.planned.shadow
    assert calls is not None
    with_lora = replace(calls, reference=replace(calls.reference, loras=(LoraChoice("mono", 1.0),)))
    generation = Generation("with a LoRA", replace(generation.planned, shadow=with_lora))
    clock = Clock()
    runner = Taking(clock, output, 0.1)
    found: list[Shadow] = []
    states: list[dict[str, None]] = [{}, {"mono": None}]
    for loaded in states:
        runs = runs_of(clock, 1)
        runs.compare_with(found.append)
        runs.offer(generation, 0, output.media, output.record)
        runner.loaded = loaded
        runs.run(runner, lambda: False)  # type: ignore[arg-type]
        assert runs.waiting == 0
        assert len(found) == len(loaded)


def test_a_request_that_got_another_speed_has_both_outputs_drawn(compared: Compared) -> None:
    generation = compared.generation("probe", speed="fast", num_inference_steps=12)
    calls = generation.planned.shadow
    assert calls is not None
    # As a request is served whose speed is lowered to lossless: its caller has the reference.
    lowered = replace(generation.planned, calls=(calls.reference,))
    compared.drawn(Generation("to lossless", lowered))
    wait_until(lambda: len(compared.found) == 1)
    other = replace(generation.planned, calls=(replace(calls.reference, seed=5),))
    compared.drawn(Generation("to another one", other))
    wait_until(lambda: len(compared.found) == 2)
    first, second = compared.found
    for drawn in ("cached", "reference"):
        assert np.array_equal(array(getattr(first, drawn)), array(getattr(second, drawn)))
