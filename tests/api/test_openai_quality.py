"""`quality` as a speed, on ladders of several servers."""

from __future__ import annotations

from typing import Any

import pytest

from cache_dit_serving.api.openai_quality import choose_speed
from cache_dit_serving.caching.checks import CacheSupport
from cache_dit_serving.caching.settings import CACHE_TYPES
from cache_dit_serving.caching.speeds import SpeedLadder
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.schemas.openai import Quality
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.planned import request


def ladder(support: CacheSupport | None = None, **speeds: Any) -> SpeedLadder:
    settings = Settings.model_validate({"speeds": speeds})
    return SpeedLadder(settings.cache, settings.speeds, support or CacheSupport({"Transformer.blocks": 12}, {}), 28)


@pytest.mark.parametrize(
    ("quality", "speed"),
    [
        ("low", "fast"),
        ("medium", "balanced"),
        ("high", "high"),
        ("hd", "high"),
        ("xhigh", "lossless"),
        ("max", "lossless"),
        ("auto", None),
        ("standard", None),
        (None, None),
    ],
)
def test_each_quality_is_a_speed_or_the_default(quality: Quality | None, speed: str | None) -> None:
    assert choose_speed(quality, request(), ladder()) == (speed, ())


def test_above_the_ceiling_the_nearest_more_exact_speed_is_taken_and_reported() -> None:
    for ceiling, speed in (("balanced", "balanced"), ("high", "high"), ("lossless", "lossless")):
        chosen = choose_speed("low", request(), ladder(ceiling=ceiling))
        assert chosen.speed == speed
        (warning,) = chosen.warnings
        assert (warning.param, warning.code) == ("quality", "adjusted")
        assert "fast" in warning.message
        assert speed in warning.message


def test_a_model_without_a_cache_draws_losslessly_and_says_so() -> None:
    support = CacheSupport({}, dict.fromkeys(CACHE_TYPES, "no blocks are known"))
    chosen = choose_speed("medium", request(), ladder(support))
    assert chosen.speed == "lossless"
    assert [warning.code for warning in chosen.warnings] == ["adjusted"]
    assert choose_speed("max", request(), ladder(support)) == ("lossless", ())


@pytest.mark.parametrize("explicit", [{"speed": "lossless"}, {"cache": {"enabled": False}}])
def test_an_explicit_speed_or_cache_goes_before_a_quality(explicit: dict[str, Any]) -> None:
    chosen = choose_speed("low", GenerateRequest(prompt="a cat", **explicit), ladder())
    assert chosen.speed is None
    assert [(warning.param, warning.code) for warning in chosen.warnings] == [("quality", "no_effect")]
    assert choose_speed("auto", GenerateRequest(prompt="a cat", **explicit), ladder()).warnings == ()
