"""Requests for a speed that live traffic has lowered."""

from __future__ import annotations

from typing import Any

import pytest

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.engine.deadline import plan_within_deadline
from cache_dit_serving.engine.lowering import Lowered, lowering_of
from cache_dit_serving.engine.shadowing import Shadowing
from cache_dit_serving.errors import DeadlineExceeded, SpeedLowered
from cache_dit_serving.jobs.rates import Rates
from cache_dit_serving.media.inputs import NO_INPUTS
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import Resolved, resolve
from tests.support.planned import model_of, request
from tests.support.traits import FLUX

SETTINGS = Settings(cache=CacheSettings(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.2))
MISSED = {"fast": "high", "balanced": "high"}


def resolved(**fields: Any) -> Resolved:
    return resolve(request(**fields), model_of(FLUX, SETTINGS))


def lowering(**fields: Any) -> Lowered | None:
    return lowering_of(resolved(**fields), MISSED)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields", [{"speed": "fast"}, {"speed": "balanced"}, {}, {"cache": {}}, {"cache": {"enabled": True}}]
)
def test_a_request_for_it_by_name_or_by_default_gets_the_next_one_with_a_warning(fields: dict[str, Any]) -> None:
    found = lowering(**fields)
    assert found is not None
    assert (found.asked, found.instead) == (fields.get("speed", "balanced"), "high")
    planned = found.warned(plan(found.resolved, NO_INPUTS))
    assert planned.cache.speed == "high"
    (warning,) = planned.warnings
    assert (warning.param, warning.code) == ("speed", "speed_lowered")
    assert found.asked in warning.message


@pytest.mark.parametrize(
    "fields",
    [
        {"speed": "high"},
        {"speed": "lossless"},
        {"cache": {"enabled": False}},
        {"cache": {"residual_diff_threshold": 0.3}},
        {"speed": "fast", "cache": {"residual_diff_threshold": 0.3}},
        {"deadline_s": 5},
    ],
)
def test_other_requests_are_left_alone(fields: dict[str, Any]) -> None:
    assert lowering(**fields) is None


def test_a_strict_request_is_refused() -> None:
    with pytest.raises(SpeedLowered, match=r"leave cache\.strict out to get high") as raised:
        lowering(speed="fast", cache={"strict": True})
    assert (raised.value.status, raised.value.param) == (409, "speed")


def test_a_deadline_tries_no_speed_that_is_lowered() -> None:
    rates = Rates()
    asked = resolved(deadline_s=1e6)
    with pytest.raises(DeadlineExceeded, match=r"not run here yet: lossless, high$"):
        plan_within_deadline(asked, rates, 0.0, without=MISSED)


def test_the_share_decides_and_the_reference_is_what_the_caller_got_where_that_has_no_cache() -> None:
    asked = resolved(speed="fast", seed=7, num_images=2)
    found = lowering_of(asked, {"fast": "lossless"})
    assert found is not None
    served = plan(found.resolved, NO_INPUTS)
    assert Shadowing(0.5, lambda: 0.5).chosen(asked, NO_INPUTS, served, lowered=True) is None
    chosen = Shadowing(1.0, lambda: 0.75).chosen(asked, NO_INPUTS, served, lowered=True)
    assert chosen is not None
    calls = chosen.with_calls(served).shadow
    assert calls is not None
    assert calls.output == 1
    assert calls.reference is served.calls[1]
    assert calls.cached.cache.speed == "fast"
    assert calls.cached.seed == calls.reference.seed
    # A request that runs no cache and asks for none is not drawn again.
    lossless = resolved(speed="lossless")
    assert Shadowing(1.0, lambda: 0.0).chosen(lossless, NO_INPUTS, plan(lossless, NO_INPUTS)) is None
