"""Gate on a synthetic drawer: what fails a speed, and what the verdict says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.errors import ServingError
from cache_dit_serving.measure.gate.gate import Gate, Stopped
from cache_dit_serving.measure.gate.report import as_markdown, sentences
from cache_dit_serving.measure.gate.verdict import Verdict
from cache_dit_serving.measure.gate.wanted import Wanted
from cache_dit_serving.measure.gate.written import as_json, as_junit
from cache_dit_serving.measure.search.points import Case, Point, cases_of
from tests.support.searches import point_of
from tests.support.synthetic import STEPS, Synthetic

CASES = cases_of([f"prompt {number}" for number in range(12)], (0, 1), 24)
EASY: Mapping[str, float] = {"psnr_db": 5.0}


def gate(
    points: Mapping[Speed, Point], floors: Mapping[str, float] = EASY, drawer: Synthetic | None = None, **options: int
) -> Gate:
    origins = dict.fromkeys(points, "--floor")
    cases = CASES[: options.get("cases", 24)]
    return Gate(drawer or Synthetic(), cases, Wanted(points, dict.fromkeys(points, floors), origins))


def test_speeds_hold_where_nine_in_ten_outputs_reach_their_floors() -> None:
    drawer = Synthetic()
    drawer.unlike = lambda case: 3.0 if case in CASES[:2] else 1.0
    verdict = gate({"high": point_of(0.1), "fast": point_of(0.5, 12)}, drawer=drawer).run()
    assert verdict.holds
    assert sentences(verdict) == ["high, fast: every floor holds on 24 outputs."]
    decile = next(each for each in verdict.judged[0].held if each.measure == "psnr_db")
    assert decile.worst < decile.worst_decile
    assert decile.case in CASES[:2]
    between = {"psnr_db": (decile.worst + decile.worst_decile) / 2}
    assert gate({"high": point_of(0.1)}, between, drawer=drawer).run().holds, "two of 24 outputs may be farther"


def test_a_miss_names_the_speed_the_measure_and_the_farthest_output() -> None:
    drawer, far = Synthetic(), Case("prompt 3", 0)
    drawer.unlike = lambda case: 2.0 if case == far else 1.0
    verdict = gate({"high": point_of(0.1), "fast": point_of(0.9)}, {"psnr_db": 30.0}, drawer).run()
    assert not verdict.holds
    assert [each.holds for each in verdict.judged] == [True, False]
    [text] = sentences(verdict)
    assert text.startswith("fast misses its floor: the worst decile of psnr_db is 2")
    assert "must be at least 30" in text
    assert text.endswith("prompt 'prompt 3', seed 0.")


def test_a_floor_is_a_bound_in_the_direction_of_its_measure() -> None:
    assert gate({"fast": point_of(0.9)}, {"flip": 1.0}).run().holds
    verdict = gate({"fast": point_of(0.9)}, {"flip": 0.0}).run()
    assert "must be at most 0;" in sentences(verdict)[0]


def test_a_miss_by_a_hair_shows_the_hair() -> None:
    [decile] = [each for each in gate({"fast": point_of(0.9)}).run().judged[0].held if each.measure == "psnr_db"]
    floor = decile.worst_decile + 1e-7
    [text] = sentences(gate({"fast": point_of(0.9)}, {"psnr_db": floor}).run())
    value, least = (float(part.split()[0].rstrip(",;")) for part in text.split(" is ")[1].split("at least "))
    assert value < least


def test_a_speed_that_reuses_nothing_fails_whatever_its_floor() -> None:
    verdict = gate({"fast": point_of(0.0)}).run()
    assert not verdict.holds
    assert sentences(verdict) == ["fast reuses no step in 24 outputs."]
    assert "FAILS" in as_markdown(verdict)
    assert "holds" not in as_markdown(verdict)


def test_a_speed_that_cannot_be_drawn_fails_with_the_reason() -> None:
    drawer, fast = Synthetic(), point_of(0.9)
    drawer.refused = lambda point: "the output is not finite" if point == fast else None
    verdict = gate({"high": point_of(0.1), "fast": fast}, drawer=drawer).run()
    assert sentences(verdict) == ["fast cannot be drawn: the output is not finite."]
    assert json.loads(as_json(verdict))["speeds"][1]["drawn"] == []


def test_nothing_is_judged_where_a_reference_cannot_be_drawn() -> None:
    drawer = Synthetic()
    drawer.refused = lambda point: "too little memory" if point.settings is None else None
    with pytest.raises(ServingError, match="reference of 'prompt 0', seed 0"):
        gate({"fast": point_of(0.9)}, drawer=drawer).run()


def test_speeds_of_one_point_are_drawn_once() -> None:
    drawer = Synthetic()
    verdict = gate({"high": point_of(0.1), "balanced": point_of(0.1)}, drawer=drawer).run()
    assert len(drawer.drawn) == 2 * len(CASES)
    assert [each.speed for each in verdict.judged] == ["high", "balanced"]


def test_a_share_of_the_steps_is_the_likeness_of_that_uncached_run() -> None:
    half = Point(STEPS // 2)
    held = []
    for threshold in (0.1, 0.9):
        points: dict[Speed, Point] = {"fast": point_of(threshold)}
        wanted = Wanted(points, {"fast": {"steps": 0.5}}, {"fast": "--floor"}, [half])
        drawer = Synthetic(step_error=0.006, cache_error=0.004)
        [judged] = Gate(drawer, CASES, wanted).run().judged
        assert half in {point for _, point in drawer.drawn}
        flip = next(each for each in judged.held if each.measure == "flip")
        assert flip.floor is not None
        held.append(judged.holds)
    assert held == [True, False]


def test_an_interruption_says_how_far_it_came() -> None:
    stops = iter([False] * 7)
    points: dict[Speed, Point] = {"fast": point_of(0.9)}
    wanted = Wanted(points, {"fast": EASY}, {"fast": "--floor"})
    with pytest.raises(Stopped, match=r"^7 of 48 outputs$"):
        Gate(Synthetic(), CASES, wanted, interrupted=lambda: next(stops, True)).run()


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    """One that holds at `high` and misses at `fast`, of a model whose name is markup."""
    found = gate({"high": point_of(0.1), "fast": point_of(0.9)}, {"psnr_db": 30.0}).run()
    return replace(found, subject=replace(found.subject, name="<b>&", conditions={"device": "none"}))


def test_the_json_has_every_output(verdict: Verdict) -> None:
    tree = json.loads(as_json(verdict))
    assert (tree["holds"], tree["model"], tree["outputs"]) == (False, "<b>&", 24)
    high, fast = tree["speeds"]
    assert (high["speed"], high["holds"], fast["holds"]) == ("high", True, False)
    assert len(fast["drawn"]) == 24
    worst = min(fast["drawn"], key=lambda each: each["psnr_db"])
    measure = fast["measures"]["psnr_db"]
    assert (measure["worst"], measure["worst_prompt"]) == (worst["psnr_db"], worst["prompt"])
    assert (measure["floor"], measure["holds"], fast["measures"]["ssim"]["floor"]) == (30.0, False, None)
    assert fast["faults"] == sentences(verdict)
    settings = verdict.judged[1].point.settings
    assert settings is not None
    assert fast["settings_hash"] == settings.digest()


def test_the_junit_file_has_a_case_for_each_speed(verdict: Verdict) -> None:
    suite = ElementTree.fromstring(as_junit(verdict))
    assert (suite.attrib["tests"], suite.attrib["failures"]) == ("2", "1")
    assert suite.attrib["name"].endswith("<b>&")
    failures = {case.attrib["name"]: [each.attrib["message"] for each in case] for case in suite}
    assert failures == {"high": [], "fast": sentences(verdict)}


@pytest.mark.parametrize(
    ("cases", "words"),
    [
        (24, "about the 3rd worst"),
        (3, "Of 3 outputs it is hardly more than the worst one"),
        (1, "1 output of each speed, of 1 prompt ("),
    ],
)
def test_the_text_says_which_statistic_it_is(cases: int, words: str) -> None:
    text = as_markdown(gate({"high": point_of(0.1)}, cases=cases).run())
    assert "a tenth of a speed's outputs are farther" in text
    assert words in text
