"""Floors of a gate: those of the flags, else of the configuration, else its measured figures; and the speeds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cache_dit_serving.caching.speed_settings import SpeedsSettings
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.measure.gate.wanted import TOLERANCES, check_names, wanted
from cache_dit_serving.measure.search.drawer import Subject
from cache_dit_serving.measure.search.points import Point
from tests.support.searches import point_of
from tests.support.synthetic import STEPS, Synthetic

POINTS = {"high": point_of(0.1), "balanced": point_of(0.2), "fast": point_of(0.4, 12)}
SUBJECT = replace(Synthetic().subject, configured=POINTS)


def speeds(**tree: Any) -> SpeedsSettings:
    return SpeedsSettings.model_validate(tree)


def measured(point: Point, **changes: Any) -> dict[str, Any]:
    """Section of a speed with figures of this point."""
    assert point.settings is not None
    figures = {"speedup": 2, "psnr_db": 40, "psnr_db_worst_decile": 35, "ssim": 0.99, "ssim_worst_decile": 0.97}
    digest = {"settings_hash": point.settings.digest(), "num_inference_steps": point.steps, "cached_steps": 5}
    return {"measured": figures | digest | changes}


def test_flags_come_before_the_configuration_and_its_floors_before_its_figures() -> None:
    tree = speeds(floors={"ssim": 0.9}, fast={"floors": {"psnr_db": 20}} | measured(POINTS["fast"]))
    found = wanted([], None, tree, SUBJECT)
    assert found.floors == {"high": {"ssim": 0.9}, "balanced": {"ssim": 0.9}, "fast": {"ssim": 0.9, "psnr_db": 20}}
    assert set(found.origins.values()) == {"the configuration's floors"}
    found = wanted(["ssim=.95", "fast:ssim=.8", "fast:flip=.1"], None, tree, SUBJECT)
    assert found.floors["balanced"] == {"ssim": 0.95}
    assert found.floors["fast"] == {"ssim": 0.8, "flip": 0.1}, "a speed's own, though it is the looser one"
    assert list(found.points) == ["high", "balanced", "fast"]


def test_measured_figures_are_floors_less_a_tolerance() -> None:
    tree = speeds(**{name: measured(point) for name, point in POINTS.items()})
    found = wanted([], None, tree, SUBJECT)
    assert found.floors["fast"] == {"psnr_db": 35 - TOLERANCES["psnr_db"], "ssim": 0.97 - TOLERANCES["ssim"]}
    assert "less 3 dB of PSNR and 0.01 of SSIM" in found.origins["fast"]


@pytest.mark.parametrize(
    ("changes", "usual"), [({"settings_hash": "0"}, True), ({"num_inference_steps": STEPS}, True), ({}, False)]
)
def test_figures_of_other_settings_steps_or_requests_are_none(changes: dict[str, Any], usual: bool) -> None:
    tree = speeds(fast=measured(POINTS["fast"], **changes))
    with pytest.raises(ConfigError, match=r"^fast: no floor; give one, such as --floor fast:ssim=\.95, or set speeds"):
        wanted([], ["fast"], tree, SUBJECT, usual_request=usual)


def test_only_speeds_within_the_ceiling_are_drawn() -> None:
    assert list(wanted(["ssim=.9"], None, speeds(ceiling="balanced"), SUBJECT).points) == ["high", "balanced"]
    with pytest.raises(ConfigError, match=r"fast is above speeds\.ceiling, balanced"):
        check_names([], ["fast"], speeds(ceiling="balanced"))
    with pytest.raises(ConfigError, match="offers no cached speed"):
        wanted(["ssim=.9"], None, speeds(ceiling="lossless"), SUBJECT)


def test_a_configured_speed_that_cannot_run_is_no_silent_pass() -> None:
    without = replace(SUBJECT, configured={"high": POINTS["high"]})
    assert list(wanted(["ssim=.9"], None, speeds(), without).points) == ["high"]
    for tree, names in ((speeds(fast={"cache": {}}), None), (speeds(), ["fast"])):
        with pytest.raises(ConfigError, match=r"speeds\.fast: cannot run on this model; it has high"):
            wanted(["ssim=.9"], names, tree, without)


def test_a_floor_of_a_speed_that_is_not_drawn_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--floor fast:\.\.\.: fast is not drawn here, only high"):
        wanted(["ssim=.9", "fast:ssim=.8"], ["high"], speeds(), SUBJECT)


def test_a_share_of_the_steps_is_drawn_too() -> None:
    assert wanted(["steps=.5"], None, speeds(), SUBJECT).uncached == [Point(STEPS // 2)]
    short: Subject = replace(SUBJECT, steps=1)
    with pytest.raises(ConfigError, match="too few for a share"):
        wanted(["steps=.5"], None, speeds(), short)


@pytest.mark.parametrize(
    ("floors", "names", "words"),
    [
        (["likeness=.9"], None, "measures: flip, ssim, psnr_db"),
        (["ssim=nan"], None, "is not a finite number"),
        (["quick:ssim=.9"], None, "speeds: high, balanced, fast"),
        ([], ["fats"], "there is no cached speed 'fats', only high, balanced, fast; did you mean fast?"),
        ([], ["lossless"], "there is no cached speed 'lossless'"),
    ],
)
def test_a_name_that_no_model_has_is_refused_before_one_is_loaded(
    floors: list[str], names: list[str] | None, words: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        check_names(floors, names, speeds())
    assert words in str(raised.value)
    check_names(["snr_db=30", "fast:spectral_db=2"], ["fast"], speeds())
