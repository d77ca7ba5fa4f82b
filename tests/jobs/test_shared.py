"""State that the workers of one server share."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from cache_dit_serving.jobs.metrics import METRICS_FOLDER
from cache_dit_serving.jobs.shared import FULL, CallerCounts, JobProgress, refill, shared_folder

BEGIN = """
import sys
from pathlib import Path
from cache_dit_serving.jobs.shared import CallerCounts
print(CallerCounts(Path(sys.argv[1])).begin("a", 5), flush=True)
sys.stdin.read()
"""


def test_a_bucket_fills_evenly_and_holds_a_minutes_requests() -> None:
    assert refill(0.0, 30.0, 2.0) == (0.0, 0.0)
    assert refill(0.0, 600.0, 2.0) == (1.0, 0.0)
    left, wait_s = refill(0.5, 0.0, 2.0)
    assert (left, wait_s) == (0.5, 15.0)
    assert refill(0.0, 60.0, 0.5) == (0.5, 60.0)
    assert refill(0.0, 120.0, 0.5) == (0.0, 0.0)


@pytest.mark.parametrize("per_minute", [0.01, 0.3, 0.5, 0.7, 1, 7, 11, 60, 1000])
@pytest.mark.parametrize("now", [0.0, 0.1, 123456.7, 98765432.1])
def test_a_new_caller_is_admitted_and_one_that_waits_as_told_is_again(per_minute: float, now: float) -> None:
    left, wait_s = refill(FULL, 0.0, per_minute)
    for _ in range(1500):
        if wait_s:
            break
        left, wait_s = refill(left, 0.0, per_minute)
    assert wait_s == pytest.approx(60 / per_minute)
    for _ in range(20):
        then = now + wait_s
        left, waits_s = refill(left, then - now, per_minute)
        assert waits_s == 0
        left, wait_s = refill(left, 0.0, per_minute)
        assert wait_s > 0.9 * 60 / per_minute
        now = then


@pytest.mark.parametrize(("per_minute", "size"), [(0.5, 1), (2, 2), (2.5, 2)])
def test_a_bucket_holds_no_more_after_a_long_time(per_minute: float, size: int, tmp_path: Path) -> None:
    counts = CallerCounts(tmp_path)
    for now in (0.0, 1e9):
        assert [counts.take("a", per_minute, now) for _ in range(size)] == [0] * size
        assert counts.take("a", per_minute, now) > 0


def test_a_clock_that_was_read_later_and_counted_first_costs_no_request(tmp_path: Path) -> None:
    counts = CallerCounts(tmp_path)
    assert counts.take("a", 2, 1000.0) == 0
    assert counts.take("a", 2, 900.0) == 0
    assert counts.take("a", 2, 900.0) == 30


def test_requests_of_a_minute_are_those_at_all_workers(tmp_path: Path) -> None:
    one, other = CallerCounts(tmp_path), CallerCounts(tmp_path)
    assert one.take("a", 2, 100.0) == 0
    assert other.take("a", 2, 100.0) == 0
    assert one.take("a", 2, 100.0) == 30
    assert one.take("b", 2, 100.0) == 0
    assert other.take("a", 2, 130.0) == 0
    assert one.take("a", 2, 130.0) == 30


def test_live_generations_are_those_at_all_workers(tmp_path: Path) -> None:
    one, other = CallerCounts(tmp_path), CallerCounts(tmp_path)
    first, _ = one.begin("a", 2)
    second, live = other.begin("a", 2)
    assert live == 1
    assert one.begin("a", 2) == (None, 2)
    assert one.begin("b", 2)[0] is not None
    assert one.begin("a", None)[0] is not None  # a job that is resumed is counted, and not refused
    assert first is not None
    assert second is not None
    other.end(first)
    other.end(second)
    assert one.begin("a", 2)[1] == 1


def test_generations_of_a_worker_that_was_killed_are_live_no_more(tmp_path: Path) -> None:
    here = CallerCounts(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", BEGIN, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdout is not None
        assert b", 0)" in worker.stdout.readline()
        assert here.begin("a", 1) == (None, 1)
        worker.kill()
        worker.wait()
        assert here.begin("a", 1)[1] == 0


def test_a_database_that_is_locked_refuses_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counts = CallerCounts(tmp_path)
    locked = sqlite3.connect(tmp_path / "callers.sqlite3", isolation_level=None)
    locked.execute("BEGIN EXCLUSIVE")
    assert counts.take("a", 1, 0.0) == 0
    assert "not counted together" in caplog.text
    locked.close()
    assert counts.take("a", 1, 0.0) == 0
    assert counts.take("a", 1, 0.0) > 0


def test_the_progress_of_a_job_is_read_at_another_worker(tmp_path: Path) -> None:
    here, there = JobProgress(tmp_path), JobProgress(tmp_path)
    assert there.read("job") is None
    here.write("job", 7, 3)
    assert there.read("job") == (7, 3)
    here.remove("job")
    here.remove("job")
    assert there.read("job") is None


def test_one_worker_shares_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(METRICS_FOLDER, str(tmp_path / "metrics"))
    assert shared_folder(2) == tmp_path
    assert shared_folder(1) is None
    monkeypatch.delenv(METRICS_FOLDER)
    assert shared_folder(2) is None
