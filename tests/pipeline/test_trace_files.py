"""Files of traces: private from their first byte, in a folder that others may list too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cache_dit_serving.config.acceleration import ProfilingSettings
from cache_dit_serving.pipeline.profiling import Profiler
from cache_dit_serving.planning.model import AskedToProfile


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
