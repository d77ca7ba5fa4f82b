"""Chosen points on prompts that the search has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.measure.search.fewer_steps import FewerSteps
from cache_dit_serving.measure.search.floors import Choice, floors_of
from cache_dit_serving.measure.search.measures import FLIP
from cache_dit_serving.measure.search.points import Point
from cache_dit_serving.measure.search.report import markdown
from cache_dit_serving.measure.search.samples import Result
from cache_dit_serving.measure.search.verification import Checked, check
from cache_dit_serving.media.values import MediaKind
from tests.support.searches import UNSEEN, Run, point_of, spread
from tests.support.synthetic import STEPS, Synthetic


def checks(tried: Sequence[Result], unseen: Sequence[Result]) -> list[Checked]:
    """Return three speeds with the same candidates, of which the first has the strictest floor."""
    curve = FewerSteps([spread(Point(10), 0.9, 0.9, 16)], FLIP, steps=STEPS)
    bounds: dict[Speed, float] = {"high": 0.1, "balanced": 0.2, "fast": 0.3}
    choices = [Choice(speed, {"flip": bound}, list(tried), None) for speed, bound in bounds.items()]
    return check(choices, {result.point.key: result for result in unseen}, curve)


@pytest.mark.verified
def test_chosen_points_hold_on_unseen_prompts(run: Run) -> None:
    run.search.run(40, lambda: None)
    outcome = run.outcome()
    assert [each.choice.speed for each in outcome.checked if each.holds] == ["high", "balanced", "fast"]
    assert "hold on 4 unseen outputs" in outcome.headline()
    assert "Fewer steps win against none" in outcome.headline()
    ratios = [each.named.median_ratio for each in outcome.checked if each.named]
    assert ratios == sorted(ratios, reverse=True)


@pytest.mark.verified
def test_points_that_do_not_hold_on_unseen_prompts_are_said_first(run: Run) -> None:
    run.drawer.unlike = lambda case: 20.0 if case in UNSEEN else 1.0
    run.search.run(24, lambda: None)
    outcome = run.outcome()
    assert not any(each.holds for each in outcome.checked)
    assert outcome.headline().startswith("**DOES NOT HOLD on unseen prompts: `high` misses PSNR at least 30 dB")


def test_fewer_steps_that_win_are_said(tmp_path: Path) -> None:
    run = Run(tmp_path, Synthetic(cache_error=0.05, step_error=0.002))
    run.search.run(24, lambda: None)
    outcome = run.outcome({"high": {"psnr_db": 60.0}, "balanced": {"psnr_db": 12.0}, "fast": {"psnr_db": 6.0}})
    said = outcome.headline()
    assert "No cached point holds `high` (PSNR at least 60 dB)" in said
    fast = outcome.checked[2]
    assert fast.winner is not None
    assert fast.winner.point.settings is None
    assert f"**Fewer steps win for `fast`: {fast.winner.point.steps} plain steps** hold its floor" in said
    assert f"fewer steps win: {fast.winner.point.steps} plain steps" in markdown(outcome)


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


@pytest.mark.verified
def test_a_search_draws_further_candidates_and_says_so(run: Run) -> None:
    run.drawer.unlike = lambda case: (0.7, 1.0, 1.3)[int(case.prompt[-1]) % 3] * (1.6 if case in UNSEEN else 1.0)
    run.search.run(40, lambda: None)
    outcome = run.outcome()
    later = [each for each in outcome.checked if len(each.tried) > 1]
    assert later
    assert f"{len(later[0].tried)} points were tried in turn" in markdown(outcome)
    assert all(each.holds == (each.missed == []) for each in outcome.checked)


@pytest.mark.verified
def test_speeds_at_the_default_floors_are_faster_than_the_runs_they_are_as_close_as(run: Run) -> None:
    run.search.run(40, lambda: None)
    outcome = run.outcome(floors_of([], MediaKind.IMAGE))
    assert all(each.holds for each in outcome.checked), outcome.headline()
    ratios = [each.named.median_ratio for each in outcome.checked if each.named is not None]
    assert all(ratio < share for ratio, share in zip(ratios, (0.75, 0.5, 1 / 3), strict=True))
    assert "`high` 75%, `balanced` 50%, `fast` 33%" in markdown(outcome)
