"""The search on a drawer whose front is known, without a model."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.errors import ServingError
from cache_dit_serving.measure.search.drawer import Interrupted
from cache_dit_serving.measure.search.front import hopeless
from cache_dit_serving.measure.search.measures import PSNR
from cache_dit_serving.measure.search.measuring import Clock, TimeOver
from cache_dit_serving.measure.search.points import Point
from cache_dit_serving.measure.search.session import Options, Session
from cache_dit_serving.measure.search.study import AFTER, study_file
from tests.support.searches import CASES, Run, point_of
from tests.support.synthetic import STEPS, Synthetic


@pytest.mark.verified
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


@pytest.mark.verified
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


@pytest.mark.verified
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


def test_a_reference_that_cannot_be_drawn_ends_the_search_and_the_report_is_written(tmp_path: Path) -> None:
    drawer = Synthetic()
    drawer.refused = lambda point: "not finite" if len(drawer.drawn) > 30 and not point.settings else None
    session = Session(drawer, Options(tmp_path, ["a", "b", "c"], outputs=2, unseen=1), None)
    with pytest.raises(ServingError, match=r"reference of '[abc]', seed [01], cannot be drawn: not finite"):
        session.run()
    assert "NOT VERIFIED" in (tmp_path / "report.md").read_text()
