"""The search on a drawer whose front is known, without a model."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.measure.search.drawer import Interrupted
from cache_dit_serving.measure.search.fewer_steps import FewerSteps, fewer_steps
from cache_dit_serving.measure.search.floors import Choice, Floors, choose, floors_of, in_values, missed
from cache_dit_serving.measure.search.front import front, hopeless
from cache_dit_serving.measure.search.measures import FLIP, PSNR, SSIM, Measure, measured
from cache_dit_serving.measure.search.measuring import Clock, TimeOver
from cache_dit_serving.measure.search.points import Case, Point, cases_of, differing
from cache_dit_serving.measure.search.report import Shown, markdown
from cache_dit_serving.measure.search.samples import Result, Sample, tolerance_factor
from cache_dit_serving.measure.search.space import pattern
from cache_dit_serving.measure.search.study import AFTER, study_file
from cache_dit_serving.measure.search.verification import Checked, check
from cache_dit_serving.measure.search.written import write
from cache_dit_serving.media.values import MediaKind
from tests.support.searches import CASES, UNSEEN, Run
from tests.support.synthetic import STEPS, Synthetic


def point_of(threshold: float, steps: int = STEPS) -> Point:
    return Point(steps, CacheSettings(Fn_compute_blocks=1, residual_diff_threshold=threshold, max_warmup_steps=2))


def result_of(point: Point, *pairs: tuple[float, float]) -> Result:
    reused = 0 if point.settings is None else 5
    samples = {case: Sample(ratio, ratio, {"flip": loss}, reused) for case, (ratio, loss) in enumerate(pairs)}
    return Result(point, samples)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, Synthetic())


def test_a_case_is_another_prompt_before_it_is_another_seed() -> None:
    cases = cases_of(["a", "b", "c"], (0, 1), 5)
    assert cases == [("a", 0), ("b", 1), ("c", 0), ("a", 1), ("b", 0)]


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    points = [point_of(threshold) for threshold in (0.1, 0.2, 0.3, 0.4)]
    numbers = [(0.5, 0.1), (0.4, 0.2), (0.45, 0.3), (0.3, 0.4)]
    results = [result_of(point, pair) for point, pair in zip(points, numbers, strict=True)]
    assert [result.point for result in front(results, FLIP)] == [points[3], points[1], points[0]]


def test_a_point_is_hopeless_once_a_rival_is_faster_and_closer_beyond_doubt() -> None:
    result = result_of(point_of(0.1), (0.5, 0.3), (0.52, 0.31), (0.51, 0.29))
    better = result_of(point_of(0.2), (0.4, 0.2), (0.42, 0.21), (0.41, 0.19), (0.4, 0.2))
    closer_alone = result_of(point_of(0.3), (0.6, 0.2), (0.62, 0.21), (0.61, 0.19))
    in_doubt = result_of(point_of(0.4), (0.4, 0.2), (0.42, 0.35), (0.41, 0.2))
    assert hopeless(result, [closer_alone, in_doubt], FLIP, after=3) is None
    assert hopeless(result, [closer_alone, better], FLIP, after=3) == better
    assert hopeless(result, [better], FLIP, after=4) is None, "too few cases to say so"


def test_fewer_steps_are_a_curve_that_a_point_beats_or_loses_to() -> None:
    uncached = [result_of(Point(10), *[(0.5, 0.2)] * 3), result_of(Point(5), *[(0.25, 0.4)] * 3)]
    curve = FewerSteps(uncached, FLIP, steps=STEPS)
    assert [each for corner in curve.points() for each in corner] == pytest.approx([0.25, 0.4, 0.5, 0.2, 1.0, 0.0])
    better = curve.verdict(result_of(point_of(0.1), *[(0.375, 0.25)] * 3))
    assert better.outcome == "beats"
    assert better.closer.value == pytest.approx(0.05)
    assert better.time_saved == pytest.approx(1 - 0.375 / 0.4375)
    assert curve.verdict(result_of(point_of(0.1), *[(0.375, 0.35)] * 3)).outcome == "loses"
    assert curve.verdict(result_of(point_of(0.1), (0.375, 0.2), (0.375, 0.4), (0.375, 0.3))).outcome == "even"
    worse = curve.verdict(result_of(point_of(0.1), *[(0.6, 0.35)] * 3))
    assert (worse.outcome, worse.rival) == ("loses", Point(10))
    beyond = curve.verdict(result_of(point_of(0.1), *[(0.2, 0.5)] * 3))
    assert (beyond.outcome, beyond.time_saved) == ("even", None), "no uncached run is as fast"


def test_the_baseline_has_fewer_steps_than_the_reference_and_no_fewer_than_the_model_takes() -> None:
    assert [point.steps for point in fewer_steps(28, 1)] == [24, 21, 17, 14, 11, 9, 7, 5, 4]
    assert [point.steps for point in fewer_steps(4, 2)] == [3, 2]
    assert fewer_steps(1, 1) == []


def test_a_search_finds_the_known_front(run: Run) -> None:
    run.search.run(40, lambda: None)
    outcome = run.outcome()
    assert outcome.curve is not None
    on_front = [result.point for result in outcome.front if result.point.settings is not None]
    assert on_front, "a step saved by the cache costs less than one that is left out"
    assert max(point.steps for point in on_front) == STEPS
    cached = [result for result in outcome.front if result.point.settings is not None]
    assert min(result.median_ratio for result in cached) < 0.4, "great reuse was found"
    assert "beats" in {outcome.curve.verdict(result).outcome for result in cached}


def test_defaults_of_cache_dit_are_points_of_every_search_and_compared(run: Run) -> None:
    run.search.run(12, lambda: None)
    compared = {each.label: each for each in run.outcome().compared()}
    assert set(compared) == {"cache-dit's command line", "cache-dit's library"}
    front_points = [result.point for result in run.outcome().front]
    for each in compared.values():
        assert each.default.point in front_points or each.faster or each.closer


def test_references_are_drawn_beside_the_points_of_each_case(run: Run) -> None:
    points = [point_of(0.1), point_of(0.2), point_of(0.3)]
    run.measuring.measure(points, lambda: None)
    rounds = [list(group) for _, group in itertools.groupby(run.drawer.drawn, key=lambda each: each[0])]
    assert [case for case, _ in (each[0] for each in rounds)] == CASES
    assert all(each[0][1] == Point(STEPS) and len(each) == 4 for each in rounds)
    assert len({each[1][1] for each in rounds}) == 3, "each point has its turn right after the reference"


def test_a_point_without_hope_is_dropped_after_a_few_cases(run: Run) -> None:
    run.drawer.refused = lambda point: None
    good, bad = point_of(0.5), Point(18, CacheSettings(Fn_compute_blocks=1, residual_diff_threshold=0.02))
    run.measuring.measure([good], lambda: None)
    rivals = run.samples.complete(len(CASES))
    run.drawer.step_error = 0.5
    ended = run.measuring.measure([bad], lambda: None, lambda result: hopeless(result, rivals, PSNR, after=AFTER))
    assert ended.dropped == {bad.key: good}
    assert len(run.samples.of(bad).samples) == AFTER


def test_settings_that_do_not_run_fail_alone(run: Run) -> None:
    run.drawer.refused = lambda point: "no blocks" if point.settings and point.settings.Fn_compute_blocks > 2 else None
    run.search.run(12, lambda: None)
    outcomes = run.search.outcomes()
    assert outcomes["cannot be drawn"] > 0
    assert sum(outcomes.values()) == 12


def test_a_killed_search_goes_on_with_what_it_had(run: Run, tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from cache_dit_serving.measure.search.study import study_file
from tests.support.searches import Run
from tests.support.synthetic import Synthetic
run = Run(Path(sys.argv[1]), Synthetic())
run.storage = study_file(Path(sys.argv[1]) / "study.db")
def die_in_the_search():
    if len(run.drawer.drawn) > 130:
        os.kill(os.getpid(), signal.SIGKILL)
run.drawer.before_draw = die_in_the_search
run.search.run(40, lambda: None)
"""
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"steps": 20, "sett')  # cut by the kill
    resumed = Run(tmp_path, Synthetic())
    resumed.storage = study_file(tmp_path / "study.db")
    before = len(resumed.samples)
    assert before > 90
    resumed.search.run(40, lambda: None)
    assert resumed.search.trials == 40
    drawn = [each for each in resumed.drawer.drawn if each[1] != Point(STEPS)]
    assert len(set(drawn)) == len(drawn) == len(resumed.samples) - before, "nothing that was measured is drawn again"
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len({(line["case"], json.dumps(line["settings"]), line["steps"]) for line in lines}) == len(lines)


def test_an_interruption_keeps_what_is_done(run: Run) -> None:
    clock = Clock(lambda: 0.0, interrupted=lambda: len(run.drawer.drawn) >= 100)
    with pytest.raises(Interrupted):
        run.search.run(40, clock.check)
    assert len(run.drawer.drawn) == 100
    outcome = run.outcome(verify=False)
    assert outcome.results
    assert outcome.curve is not None
    assert "NOT VERIFIED" in outcome.headline()


def test_a_budget_ends_the_search_with_time_left_for_the_verification(run: Run) -> None:
    clock = Clock(lambda: float(len(run.drawer.drawn)), ends_at=150.0)
    with pytest.raises(TimeOver):
        run.search.run(None, lambda: clock.check(reserve_s=30.0))
    assert len(run.drawer.drawn) == 120


def test_chosen_points_hold_on_unseen_prompts(run: Run) -> None:
    run.search.run(40, lambda: None)
    outcome = run.outcome()
    assert [each.choice.speed for each in outcome.checked if each.holds] == ["high", "balanced", "fast"]
    assert "hold on 4 unseen outputs" in outcome.headline()
    assert "Fewer steps win against none" in outcome.headline()
    ratios = [each.named.median_ratio for each in outcome.checked if each.named]
    assert ratios == sorted(ratios, reverse=True)


def test_points_that_do_not_hold_on_unseen_prompts_are_said_first(run: Run) -> None:
    run.drawer.unlike = lambda case: 20.0 if case in UNSEEN else 1.0
    run.search.run(24, lambda: None)
    outcome = run.outcome()
    assert not any(each.holds for each in outcome.checked)
    assert outcome.headline().startswith("**DOES NOT HOLD on unseen prompts: `high` misses PSNR, dB at least 30")


def test_fewer_steps_that_win_are_said(tmp_path: Path) -> None:
    run = Run(tmp_path, Synthetic(cache_error=0.05, step_error=0.002))
    run.search.run(24, lambda: None)
    outcome = run.outcome({"high": {"psnr_db": 60.0}, "balanced": {"psnr_db": 12.0}, "fast": {"psnr_db": 6.0}})
    said = outcome.headline()
    assert "No cached point holds `high` (PSNR, dB at least 60)" in said
    fast = outcome.checked[2]
    assert fast.winner is not None
    assert fast.winner.point.settings is None
    assert f"**Fewer steps win for `fast`: {fast.winner.point.steps} plain steps** hold its floor" in said
    assert f"fewer steps win: {fast.winner.point.steps} plain steps" in markdown(outcome)


def test_a_point_that_does_not_lose_is_preferred_to_a_faster_one_that_does_whatever_its_steps() -> None:
    uncached = [result_of(Point(10), *[(0.5, 0.2)] * 3), result_of(Point(5), *[(0.25, 0.4)] * 3)]
    losing, even = result_of(point_of(0.3), *[(0.4, 0.36)] * 3), result_of(point_of(0.2, 12), *[(0.45, 0.2)] * 3)
    curve = FewerSteps(uncached, FLIP, steps=STEPS)
    floors: Floors = {speed: {"flip": 0.37} for speed in ("high", "balanced", "fast")}
    assert [choice.candidates for choice in choose([losing, even], floors, curve)] == [[even]] * 3
    assert [choice.candidates for choice in choose([losing], floors, curve)] == [[losing]] * 3


def spread(point: Point, ratio: float, loss: float, count: int = 8) -> Result:
    """Return a result whose losses differ by a tenth and more."""
    return result_of(point, *[(ratio, loss * (1 + 0.05 * (case % 5 - 2))) for case in range(count)])


def test_each_further_candidate_held_its_floor_with_more_confidence() -> None:
    curve = FewerSteps([spread(Point(10), 0.9, 0.9)], FLIP, steps=STEPS)
    near, far = spread(point_of(0.3), 0.4, 0.08), spread(point_of(0.2), 0.5, 0.05)
    floors: Floors = {speed: {"flip": 0.1} for speed in ("high", "balanced", "fast")}
    assert missed(near, {"flip": 0.1}, sure=0.8) == []
    assert missed(near, {"flip": 0.1}, sure=0.99) == ["flip"]
    high = choose([near, far], floors, curve)[0]
    assert high.candidates[0] == near
    assert high.candidates[-1] == far
    assert high.sure == pytest.approx(0.9), "two tries share the chance of an error"


def checks(tried: Sequence[Result], unseen: Sequence[Result]) -> list[Checked]:
    """Return three speeds with the same candidates, of which the first has the strictest floor."""
    curve = FewerSteps([spread(Point(10), 0.9, 0.9, 16)], FLIP, steps=STEPS)
    bounds: dict[Speed, float] = {"high": 0.1, "balanced": 0.2, "fast": 0.3}
    choices = [Choice(speed, {"flip": bound}, list(tried), None) for speed, bound in bounds.items()]
    return check(choices, {result.point.key: result for result in unseen}, curve)


def test_a_candidate_that_misses_its_floor_on_unseen_prompts_makes_way_for_the_next() -> None:
    first, second = point_of(0.3), point_of(0.2, 15)
    tried = [spread(first, 0.4, 0.08), spread(second, 0.5, 0.05)]
    unseen = [spread(first, 0.4, 0.15, 16), spread(second, 0.5, 0.05, 16)]
    assert checks(tried, unseen[:1]) == [], "the second candidate of `high` is not drawn yet"
    high, balanced, fast = checks(tried, unseen)
    assert [len(each.tried) for each in (high, balanced, fast)] == [2, 1, 1]
    assert [each.named for each in (high, balanced, fast)] == [unseen[1], unseen[0], unseen[0]]
    assert all(each.holds for each in (high, balanced, fast))


def test_speeds_come_in_order_of_time_on_unseen_prompts() -> None:
    slow, quick = point_of(0.3), point_of(0.2)
    unseen = [spread(slow, 0.6, 0.05, 16), spread(quick, 0.5, 0.05, 16)]
    curve = FewerSteps([spread(Point(10), 0.9, 0.9, 16)], FLIP, steps=STEPS)
    of_speed: dict[Speed, Result] = {"high": unseen[1], "balanced": unseen[0]}
    choices = [Choice(speed, {"flip": 0.1}, [result], None) for speed, result in of_speed.items()]
    high, balanced = check(choices, {result.point.key: result for result in unseen}, curve)
    assert (high.same_as, balanced.same_as) == (None, "high")
    assert balanced.named == high.named


def test_a_search_draws_further_candidates_and_says_so(run: Run) -> None:
    run.drawer.unlike = lambda case: (0.7, 1.0, 1.3)[int(case.prompt[-1]) % 3] * (1.6 if case in UNSEEN else 1.0)
    run.search.run(40, lambda: None)
    outcome = run.outcome()
    later = [each for each in outcome.checked if len(each.tried) > 1]
    assert later
    assert f"{len(later[0].tried)} points were tried in turn" in markdown(outcome)
    assert all(each.holds == (each.missed == []) for each in outcome.checked)


def test_speeds_carry_the_steps_of_their_points(run: Run, tmp_path: Path) -> None:
    run.search.run(40, lambda: None)
    outcome = run.outcome()
    write(outcome, None, tmp_path)
    tree = yaml.safe_load((tmp_path / "tuned.yaml").read_text())
    named = {each.choice.speed: each.named.point for each in outcome.checked if each.named is not None}
    assert {point.steps for point in named.values()} != {STEPS}
    for speed, point in named.items():
        assert tree["speeds"][speed].get("num_inference_steps", STEPS) == point.steps
        assert ("num_inference_steps" in tree["speeds"][speed]) == (point.steps != STEPS)
        assert f"num_inference_steps={point.steps}" in (tmp_path / f"cache-dit-{speed}.yaml").read_text()
        assert f'"num_inference_steps": {point.steps}' in markdown(outcome)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], {"high": {"steps": 0.75}, "balanced": {"steps": 0.5}, "fast": {"steps": 1 / 3}}),
        (
            ["ssim=.95"],
            {"high": {"steps": 0.75, "ssim": 0.95}, "balanced": {"steps": 0.5, "ssim": 0.95}, "fast": {"ssim": 0.95}},
        ),
        (["steps=.6"], {"high": {"steps": 0.75}, "balanced": {"steps": 0.6}, "fast": {"steps": 0.6}}),
        (
            ["flip=.05", "high:flip=.02"],
            {"high": {"flip": 0.02}, "balanced": {"steps": 0.5, "flip": 0.05}, "fast": {"flip": 0.05}},
        ),
    ],
)
def test_floors_hold_for_all_speeds_or_for_one(texts: list[str], expected: dict[str, dict[str, float]]) -> None:
    assert floors_of(texts, MediaKind.IMAGE) == expected


@pytest.mark.parametrize(
    "text", ["ssim", "likeness=.9", "ssim=much", "quick:ssim=.9", "lossless:ssim=.9", "snr_db=30", "steps=2"]
)
def test_a_floor_that_cannot_be_read_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ConfigError, match="--floor"):
        floors_of([text], MediaKind.IMAGE)


def test_a_floor_by_steps_is_the_worst_decile_of_that_uncached_run() -> None:
    runs = [spread(Point(15), 0.75, 0.02), spread(Point(10), 0.5, 0.05), spread(Point(7), 0.35, 0.1)]
    found = in_values(floors_of([], MediaKind.IMAGE), runs, FLIP, steps=STEPS)
    assert found == {
        speed: {"flip": run.worst(FLIP).value} for speed, run in zip(("high", "balanced", "fast"), runs, strict=True)
    }
    stricter = in_values({"fast": {"steps": 0.5, "flip": 0.01}}, runs, FLIP, steps=STEPS)
    assert stricter == {"fast": {"flip": 0.01}}


def test_speeds_at_the_default_floors_are_faster_than_the_runs_they_are_as_close_as(run: Run) -> None:
    run.search.run(40, lambda: None)
    outcome = run.outcome(floors_of([], MediaKind.IMAGE))
    assert all(each.holds for each in outcome.checked), outcome.headline()
    ratios = [each.named.median_ratio for each in outcome.checked if each.named is not None]
    assert all(ratio < share for ratio, share in zip(ratios, (0.75, 0.5, 1 / 3), strict=True))
    assert "`high` 75%, `balanced` 50%, `fast` 33%" in markdown(outcome)


def test_a_floor_is_held_in_the_direction_of_its_measure() -> None:
    result = Result(point_of(0.1), {case: Sample(0.5, 1.0, {"ssim": 0.96, "flip": 0.04}) for case in range(3)})
    assert missed(result, {"ssim": 0.95, "flip": 0.05}, sure=0.8) == []
    assert missed(result, {"ssim": 0.97, "flip": 0.03}, sure=0.8) == ["ssim", "flip"]


@pytest.mark.parametrize(
    ("count", "sure", "published"), [(2, 0.9, 10.253), (8, 0.95, 2.582), (16, 0.9, 1.842), (30, 0.99, 2.030)]
)
def test_tolerance_factors_are_those_of_the_tables(count: int, sure: float, published: float) -> None:
    """One-sided factors for normal values and nine in ten of them (Natrella 1963, table A-7; Owen 1963)."""
    assert tolerance_factor(count, sure) == pytest.approx(published, rel=0.02)


def test_measures_are_of_equal_outputs_what_they_say() -> None:
    drawer = Synthetic()
    picture = drawer.draw(Case("a", 0), Point(10)).media
    assert measured(picture, picture) == {each.name: each.equal for each in (FLIP, SSIM, PSNR)}


@pytest.mark.parametrize("reused", [1, 3, 6])
@pytest.mark.parametrize("steps", [8, 28, 100])
def test_a_pattern_covers_any_number_of_steps(reused: int, steps: int) -> None:
    settings = CacheSettings.model_validate({"Fn_compute_blocks": 1, **pattern(3, reused, steps)})
    mask = settings.mask(steps)
    assert mask is not None
    assert mask[:4] == [1, 1, 1, 0]
    assert settings.mask(100) is not None


def test_what_differs_from_the_defaults_has_the_effect_of_all_settings() -> None:
    for fields in (
        {},
        {"enable_taylorseer": True, "taylorseer_order": 2},
        pattern(2, 3, 28),
        {"cache_type": "DBPrune"},
    ):
        settings = CacheSettings.model_validate({"Fn_compute_blocks": 2, **fields})
        assert CacheSettings.model_validate(differing(settings)).same_effect(settings)


def test_pictures_and_differences_of_the_report_outlive_the_run(tmp_path: Path) -> None:
    shown, drawer, point = Shown(UNSEEN, tmp_path / "shown.json"), Synthetic(), point_of(0.3)
    for case in UNSEEN:
        shown.take(case, point, drawer.draw(case, point))
    shown.save()
    again = Shown(UNSEEN, tmp_path / "shown.json")
    assert len(again.pictures) == len(again.cases) > 0
    assert again.pictures == shown.pictures
    assert again.diffs == shown.diffs
    assert again.diffs[point.key]["transformer.blocks"][1] == [0.01] * len(UNSEEN)


def test_files_of_an_earlier_run_do_not_stay_where_no_speed_holds(run: Run, tmp_path: Path) -> None:
    run.search.run(24, lambda: None)
    write(run.outcome(), None, tmp_path)
    assert {file.name for file in tmp_path.glob("*.yaml")} >= {"tuned.yaml", "cache-dit-fast.yaml"}
    impossible: Floors = {speed: {"psnr_db": 99.0} for speed in ("high", "balanced", "fast")}
    write(run.outcome(impossible), None, tmp_path)
    assert not list(tmp_path.glob("*.yaml"))
    assert "No cached point holds" in json.loads((tmp_path / "front.json").read_text())["summary"]


@pytest.mark.parametrize(("measure", "equal"), [(FLIP, 0.0), (SSIM, 1.0), (PSNR, None)])
def test_the_bound_on_the_worst_decile_holds_for_outputs_that_were_not_measured(
    measure: Measure, equal: float | None
) -> None:
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        drawn = rng.normal(30, 3, 2008) if equal is None else np.abs(equal - rng.lognormal(-4, 0.5, 2008))
        values = [float(value) for value in drawn]
        samples = {case: Sample(0.5, 0.5, {measure.name: value}) for case, value in enumerate(values[:8])}
        bound = Result(point_of(0.1), samples).worst_bound(measure)
        held += sum(measure.loss(value) > bound for value in values[8:]) <= 200
    assert held >= 0.8 * 200 - 15
