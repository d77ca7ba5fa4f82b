"""Traces: valid JSON in Chrome's format, with each step named as the cache's record has it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache_dit_serving.config.acceleration import ProfilingSettings
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.errors import InvalidRequest, LoadError
from cache_dit_serving.pipeline.profiling import Profiler
from cache_dit_serving.pipeline.protocol import Loaded
from cache_dit_serving.planning.model import AskedToProfile
from tests.support.in_process import EMBEDDED, STEPS, draw, load


def profiling(folder: Path, **fields: Any) -> Settings:
    return EMBEDDED.model_copy(update={"profiling": ProfilingSettings(folder=folder, **fields)})


def ranges(file: Path) -> dict[str, tuple[float, float]]:
    """Name -> its beginning and end in microseconds, of the ranges that the server makes."""
    events = json.loads(file.read_text())["traceEvents"]
    mine = [event for event in events if event.get("cat") == "user_annotation" and event.get("ph") == "X"]
    return {event["name"]: (event["ts"], event["ts"] + event["dur"]) for event in mine}


@pytest.mark.verified
def test_a_trace_has_each_step_by_number_and_kind_in_order(tmp_path: Path, embedded: Loaded) -> None:
    loaded = load(profiling(tmp_path / "traces", requests="asked", name="flux"))
    expected = draw(embedded).media.array
    assert not list((tmp_path / "traces").iterdir())  # the warm-up writes none
    drawn = draw(loaded, profile=True)
    assert np.array_equal(drawn.media.array, expected)
    (file,) = (tmp_path / "traces").iterdir()
    assert drawn.record.profile == file.name
    assert file.name.startswith("flux-")
    cached = set(drawn.record.stats[0].cached_steps)
    assert 0 < len(cached) < STEPS
    steps = [f"step {step} {'cached' if step in cached else 'computed'}" for step in range(STEPS)]
    found = ranges(file)
    assert [name for name in found if name in ("encode prompt", "decode", *steps)] == [
        *("encode prompt", *steps, "decode"),
    ]
    for before, after in zip(["encode prompt", *steps], [*steps, "decode"], strict=True):
        assert found[before][1] <= found[after][0], after
    operations = {
        event["name"] for event in json.loads(file.read_text())["traceEvents"] if event.get("cat") == "cpu_op"
    }
    assert "aten::addmm" in operations or "aten::linear" in operations


@pytest.mark.verified
def test_without_the_cache_every_step_is_computed_and_a_request_that_does_not_ask_has_no_trace(tmp_path: Path) -> None:
    loaded = load(profiling(tmp_path, requests="asked", record_shapes=True, with_stack=True))
    assert draw(loaded, num_inference_steps=2).record.profile is None
    name = draw(loaded, profile=True, speed="lossless", num_inference_steps=3).record.profile
    assert name is not None
    assert sum("computed" in each for each in ranges(tmp_path / name)) == 3
    assert "Input Dims" in (tmp_path / name).read_text()


@pytest.mark.verified
def test_all_outputs_have_one_up_to_a_number(tmp_path: Path) -> None:
    loaded = load(profiling(tmp_path, requests="all", max_traces=2))
    asked: list[dict[str, Any]] = [{}, {"profile": False}, {}, {}]
    written = [draw(loaded, num_inference_steps=2, **fields).record.profile for fields in asked]
    assert [name is not None for name in written] == [True, False, True, False]
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(InvalidRequest, match="has written the 2 traces that it may"):
        draw(loaded, profile=True)


def test_traces_are_bounded_in_bytes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = load(profiling(tmp_path, requests="all", max_bytes=1000))
    written = [draw(loaded, num_inference_steps=2).record.profile for _ in range(2)]
    assert [name is not None for name in written] == [True, False]
    assert "the 1,000 bytes of traces of profiling are written" in caplog.text
    with pytest.raises(InvalidRequest, match="1,000 bytes of traces"):
        draw(loaded, profile=True)


def test_nobody_else_reads_traces_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        profiler = Profiler(ProfilingSettings(folder=tmp_path / "a" / "b", requests="all"), torch.device("cpu"))
        with profiler.trace(AskedToProfile.BY_OPERATOR) as trace:
            trace.stage("step 0")
        name = trace.save(1, ())
    finally:
        os.umask(before)
    assert name is not None
    assert {each.name: oct(each.stat().st_mode & 0o777) for each in tmp_path.rglob("*")} == {
        "a": "0o700",
        "b": "0o700",
        name: "0o600",
    }


def test_nobody_else_reads_a_trace_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o755)
    written = torch.profiler.profile.export_chrome_trace
    modes: list[str] = []

    def look(profile: torch.profiler.profile, path: str) -> None:
        written(profile, path)
        modes.extend(oct(each.stat().st_mode & 0o777) for each in tmp_path.iterdir())

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", look)
    profiler = Profiler(ProfilingSettings(folder=tmp_path, requests="all"), torch.device("cpu"))
    with profiler.trace(AskedToProfile.BY_OPERATOR) as trace:
        trace.stage("step 0")
    name = trace.save(1, ())
    assert modes == ["0o700"]  # a folder, with the trace in it
    assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.verified
def test_a_request_that_fails_leaves_no_trace_and_no_profiler_behind(tmp_path: Path) -> None:
    loaded = load(profiling(tmp_path, requests="asked"))

    def fail(done: int) -> None:
        if done == 3:
            raise KeyError

    with pytest.raises(KeyError):
        draw(loaded, fail, profile=True)
    assert not list(tmp_path.iterdir())
    assert draw(loaded, profile=True, num_inference_steps=2).record.profile


def test_where_the_operator_does_not_let_them_requests_are_refused(embedded: Loaded) -> None:
    draw(embedded, profile=False, num_inference_steps=2)
    with pytest.raises(InvalidRequest, match=r"does not take profile \(this server writes no traces; its operator can"):
        draw(embedded, profile=True)


def test_what_cannot_be_traced_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="there is no GPU to profile on cpu; add cpu"):
        load(profiling(tmp_path, requests="all", activities=("gpu",)))
    (tmp_path / "file").touch()
    with pytest.raises(LoadError, match=r"profiling\.folder cannot be made"):
        load(profiling(tmp_path / "file" / "below", requests="all"))
