"""Files of a search: the configuration of its speeds, and what a later run goes on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.measure.search.floors import Floors
from cache_dit_serving.measure.search.points import Point
from cache_dit_serving.measure.search.report import Shown, markdown
from cache_dit_serving.measure.search.written import for_cache_dit, write
from tests.support.searches import UNSEEN, Run, point_of
from tests.support.synthetic import STEPS, Synthetic


@pytest.mark.verified
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


def test_floors_of_the_configuration_are_kept(run: Run, tmp_path: Path) -> None:
    run.search.run(24, lambda: None)
    speeds = {"floors": {"ssim": 0.9}, "fast": {"floors": {"psnr_db": 20}}, "measured_on": "elsewhere"}
    settings = Settings.model_validate({"speeds": speeds})
    possible: Floors = {"high": {"psnr_db": 30.0}, "balanced": {"psnr_db": 26.0}, "fast": {"psnr_db": 20.0}}
    for fast in (possible["fast"], {"psnr_db": 99.0}):
        write(run.outcome({**possible, "fast": fast}), settings, tmp_path)
        tree = yaml.safe_load((tmp_path / "tuned.yaml").read_text())
        kept = Settings.model_validate(tree).speeds
        assert kept.floors_of("fast") == {"ssim": 0.9, "psnr_db": 20}
        assert kept.floors_of("high") == {"ssim": 0.9}


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


@pytest.mark.verified
def test_files_of_an_earlier_run_do_not_stay_where_no_speed_holds(run: Run, tmp_path: Path) -> None:
    run.search.run(24, lambda: None)
    write(run.outcome(), None, tmp_path)
    assert {file.name for file in tmp_path.glob("*.yaml")} >= {"tuned.yaml", "cache-dit-fast.yaml"}
    impossible: Floors = {speed: {"psnr_db": 99.0} for speed in ("high", "balanced", "fast")}
    write(run.outcome(impossible), None, tmp_path)
    assert not list(tmp_path.glob("*.yaml"))
    assert "No cached point holds" in json.loads((tmp_path / "front.json").read_text())["summary"]


def test_a_file_for_cache_dit_names_the_parts_whose_settings_it_cannot_hold() -> None:
    parts = {"per_transformer": {"transformer_2": {"residual_diff_threshold": 0.3}}}
    text = for_cache_dit(Point(STEPS, CacheSettings.model_validate({"Fn_compute_blocks": 1, **parts})))
    assert "Not the measured speed: such a file has no settings of a part, here of transformer_2" in text
    assert "Not the measured" not in for_cache_dit(point_of(0.1))
