"""How long things take, learnt from what has run, and what it says of what has not."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace

import pytest

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.caching.speeds import WITHOUT_CACHE, CacheChoice
from cache_dit_serving.jobs.rates import MOST_KEYS, WINDOW, Estimate, Rates
from cache_dit_serving.planning.planned import Planned
from cache_dit_serving.planning.samplers import SamplerChoice
from tests.support.records import COMPUTED_S, FAST, FIXED_S, REUSED_S, call, learn, record_of


def seconds(rates: Rates, of: Planned) -> float:
    estimate = rates.estimate(of).seconds
    assert estimate is not None
    return estimate


def test_nothing_is_promised_of_what_nothing_like_has_run() -> None:
    assert Rates().estimate(call(WITHOUT_CACHE)) == Estimate(None, None, known=False)


def test_what_has_run_is_known() -> None:
    rates = Rates()
    learn(rates, call(WITHOUT_CACHE))
    learn(rates, call(FAST), reused=12)
    lossless, fast = rates.estimate(call(WITHOUT_CACHE)), rates.estimate(call(FAST))
    assert lossless.known
    assert lossless.seconds == pytest.approx(FIXED_S + 20 * COMPUTED_S)
    assert fast.known
    assert fast.seconds == pytest.approx(FIXED_S + 8 * COMPUTED_S + 12 * REUSED_S)
    assert seconds(rates, call(FAST, images=3)) == pytest.approx(3 * seconds(rates, call(FAST)))


def test_uncached_is_known_from_cached_runs_and_unseen_settings_promise_nothing() -> None:
    rates = Rates()
    learn(rates, call(FAST), reused=12)
    assert rates.estimate(call(WITHOUT_CACHE)).seconds == pytest.approx(FIXED_S + 20 * COMPUTED_S)
    unseen = CacheChoice(CacheSettings(residual_diff_threshold=0.9), "custom")
    estimate = rates.estimate(call(unseen))
    assert not estimate.known
    assert estimate.seconds == pytest.approx(FIXED_S + 20 * COMPUTED_S)


def test_a_promise_rests_on_the_fewest_steps_that_were_reused() -> None:
    rates = Rates()
    for reused in (12, 9, 14):
        learn(rates, call(FAST), reused=reused)
    assert rates.estimate(call(FAST)).seconds == pytest.approx(FIXED_S + 11 * COMPUTED_S + 9 * REUSED_S)


def test_reused_steps_of_another_scheduler_promise_nothing() -> None:
    rates, cached = Rates(), call(FAST)
    learn(rates, cached, reused=12)
    other = replace(cached, calls=(replace(cached.call, sampler=SamplerChoice("unipc")),))
    assert not rates.estimate(other).known
    assert seconds(rates, other) == pytest.approx(FIXED_S + 20 * COMPUTED_S)


def test_other_step_counts_scale_and_reuse_no_more_than_the_settings_allow() -> None:
    rates = Rates()
    learn(rates, call(FAST, steps=20), reused=16)
    assert rates.estimate(call(FAST, steps=40)).seconds == pytest.approx(FIXED_S + 24 * COMPUTED_S + 16 * REUSED_S)
    assert rates.estimate(call(FAST, steps=10)).seconds == pytest.approx(FIXED_S + 4 * COMPUTED_S + 6 * REUSED_S)
    assert rates.estimate(call(FAST, steps=4)).seconds == pytest.approx(FIXED_S + 4 * COMPUTED_S)


def test_the_same_settings_at_other_steps_are_rates_of_their_own() -> None:
    rates = Rates()
    learn(rates, call(FAST, steps=28), reused=20)
    learn(rates, call(FAST, steps=14), reused=3)
    assert seconds(rates, call(FAST, steps=28)) == pytest.approx(FIXED_S + 8 * COMPUTED_S + 20 * REUSED_S)
    assert seconds(rates, call(FAST, steps=14)) == pytest.approx(FIXED_S + 11 * COMPUTED_S + 3 * REUSED_S)


def test_other_sizes_and_passes_are_in_proportion_until_they_have_run() -> None:
    rates = Rates()
    learn(rates, call(WITHOUT_CACHE))
    known = seconds(rates, call(WITHOUT_CACHE))
    assert rates.estimate(call(WITHOUT_CACHE, pixels=4 * 9216)).seconds == pytest.approx(4 * known)
    assert rates.estimate(call(WITHOUT_CACHE, passes=2)).seconds == pytest.approx(2 * known)
    assert rates.estimate(call(WITHOUT_CACHE, pixels=9216 // 2)).seconds == pytest.approx(known), "never shorter"
    learn(rates, call(WITHOUT_CACHE, pixels=4 * 9216), slowness=3)
    assert rates.estimate(call(WITHOUT_CACHE, pixels=4 * 9216)).seconds == pytest.approx(FIXED_S + 60 * COMPUTED_S)


def test_a_change_of_load_is_followed_and_one_slow_picture_forgotten() -> None:
    rates = Rates()
    for _ in range(5):
        learn(rates, call(WITHOUT_CACHE))
    learn(rates, call(WITHOUT_CACHE), slowness=50)
    assert rates.estimate(call(WITHOUT_CACHE)).seconds == pytest.approx(FIXED_S + 20 * COMPUTED_S)
    for _ in range(WINDOW):
        learn(rates, call(WITHOUT_CACHE), slowness=2)
    assert rates.estimate(call(WITHOUT_CACHE)).seconds == pytest.approx(FIXED_S + 40 * COMPUTED_S)


def test_steps_that_could_not_be_told_apart_teach_nothing_about_a_step() -> None:
    rates = Rates()
    learn(rates, call(WITHOUT_CACHE))
    drawn = replace(record_of(call(FAST).call, reused=12), cached_steps_s=None)
    rates.learn(call(FAST).call, drawn)
    assert not rates.estimate(call(FAST)).known
    assert [rate.observations for rate in rates.by_shape()] == [1]


def test_a_picture_teaches_about_the_passes_it_took_not_those_that_were_planned() -> None:
    rates = Rates()
    drawn = replace(record_of(call(WITHOUT_CACHE).call), passes=2)
    rates.learn(call(WITHOUT_CACHE).call, drawn)
    assert [rate.forward_passes for rate in rates.by_shape()] == [2]


def test_what_callers_ask_for_does_not_pile_up() -> None:
    rates = Rates()
    learn(rates, call(FAST), reused=12)
    for index in range(MOST_KEYS):
        other = CacheChoice(CacheSettings(residual_diff_threshold=0.3 + index / 1e6, max_warmup_steps=5), "custom")
        learn(rates, call(other, pixels=9216 + index), reused=12)
        rates.estimate(call(FAST))  # what is in use stays
    assert len(rates.by_shape()) <= MOST_KEYS
    assert len(list(rates._reused_steps)) <= MOST_KEYS
    assert rates.estimate(call(FAST)).known


def test_estimates_stand_while_other_threads_learn() -> None:
    rates = Rates()
    learn(rates, call(FAST), reused=12)
    failures: list[BaseException] = []
    done = threading.Event()

    def keep_estimating() -> None:
        while not done.is_set():
            try:
                rates.estimate(call(FAST, steps=33))
                rates.by_shape()
            except RuntimeError as error:
                failures.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    reader = threading.Thread(target=keep_estimating)
    reader.start()
    try:
        for index in range(60):
            learn(rates, call(FAST, steps=20 + index, pixels=9216 + index), reused=1)
    finally:
        done.set()
        reader.join()
        sys.setswitchinterval(before)
    assert not failures


def test_a_generation_that_was_stopped_teaches_too() -> None:
    rates = Rates()
    learn(rates, call(WITHOUT_CACHE))
    for _ in range(3):
        rates.learn_stopped(call(WITHOUT_CACHE).call, 5 * COMPUTED_S)
    assert seconds(rates, call(WITHOUT_CACHE)) == pytest.approx(FIXED_S + 20 * 5 * COMPUTED_S)


def test_a_promise_is_what_nine_pictures_in_ten_keep_to() -> None:
    rates = Rates()
    for slowness in [1.0] * 17 + [2.0] * 3:
        learn(rates, call(WITHOUT_CACHE), slowness=slowness)
    estimate = rates.estimate(call(WITHOUT_CACHE))
    assert estimate.seconds == pytest.approx(FIXED_S + 20 * COMPUTED_S)
    assert estimate.promise_s == pytest.approx(FIXED_S + 40 * COMPUTED_S)
