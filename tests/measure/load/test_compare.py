"""Comparison of two benchmarks whose requests are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cache_dit_serving.cli import bench
from cache_dit_serving.measure.load.arrival import Closed
from cache_dit_serving.measure.load.compare import Comparison, compare
from cache_dit_serving.measure.load.outcome import Outcome
from cache_dit_serving.measure.load.results import BenchResult, point_result


def _result(seed: int, scale: float, *, failed: int = 0, device: str = "cuda", users: int = 1) -> BenchResult:
    """A benchmark of one user at a server that takes 0.5 s, times `scale` for denoising."""
    rng = np.random.default_rng(seed)
    outcomes, at = [], 0.0
    for number in range(120):
        queue, denoise = 0.1 * rng.lognormal(0, 0.05), 0.4 * scale * rng.lognormal(0, 0.05)
        outcomes.append(
            Outcome(
                kind="",
                intended=at,
                sent=at,
                ended=at + queue + denoise,
                outputs=1,
                stages={"queue": queue, "denoise": denoise},
                error="500" if number < failed else None,
            )
        )
        at += queue + denoise
    point = point_result(Closed(users), outcomes, client_cpu=0.1, held_back=False)
    return BenchResult(
        tool_version="1",
        begun_at="2026-01-01T00:00:00Z",
        url="http://localhost",
        settings={},
        server={"model": "m", "device": device},
        machine={"load_average": seed},
        warm_up=0,
        points=[point],
    )


def _real(comparison: Comparison) -> set[str]:
    return {row.figure for row in comparison.compared if row.real}


def test_two_runs_of_one_server_do_not_differ() -> None:
    comparison = compare(_result(1, 1.0), _result(2, 1.0))
    assert _real(comparison) == set()
    assert len(comparison.compared) >= 6
    assert comparison.conditions == {}


def test_a_faster_stage_is_real_and_the_others_are_noise() -> None:
    comparison = compare(_result(1, 1.0), _result(2, 0.9))
    assert _real(comparison) == {"seconds per success", "latency p50, s", "latency p90, s", "denoise, median s"}
    rows = {row.figure: row for row in comparison.compared}
    denoise = rows["denoise, median s"]
    assert denoise.better is True
    assert denoise.low is not None
    assert denoise.high is not None
    assert denoise.low < 0.9 < denoise.high


def test_more_errors_are_real_and_worse() -> None:
    (row,) = [row for row in compare(_result(1, 1.0), _result(2, 1.0, failed=20)).compared if "errors" in row.figure]
    assert (row.real, row.better) == (True, False)


def test_conditions_and_loads_that_differ_are_named() -> None:
    comparison = compare(_result(1, 1.0), _result(2, 1.0, device="cpu", users=2))
    assert comparison.conditions == {"server device": ('"cuda"', '"cpu"')}
    assert comparison.left_out == ["1 user", "2 users"]
    assert comparison.compared == []


def test_the_command_writes_the_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, result in zip(files, (_result(1, 1.0), _result(2, 1.3)), strict=True):
        file.write_text(result.model_dump_json())
    out, page = tmp_path / "c.json", tmp_path / "c.html"
    assert bench.main(["--compare", *map(str, files), "-o", str(out), "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "worse" in shown.partition("## Noise")[0]
    assert "queue, median s" in shown.partition("## Noise")[2]
    assert "denoise, median s" in _real(Comparison.model_validate_json(out.read_bytes()))
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("content", ["", "{}", '{"schema_version": 2}', "[]"])
def test_another_file_is_no_result(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(content)
    assert bench.main(["--compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")]) == 2
    assert "is no results file" in capsys.readouterr().err
