"""`cache-dit-serving bench` on the embedded model: the doors of this server tell the stages and the reused steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache_dit_serving.cli import bench
from cache_dit_serving.measure.load.results import BenchResult
from tests.support.server import Server

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("door", ["generate", "file", "jobs", "openai"])
def test_each_door_of_this_server_tells_its_evidence(server: Server, door: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    flags = ["--door", door, "--steps", "6", "--speed", "fast", "--concurrency", "2", "--requests", "3"]
    assert bench.main([server.url, *flags, "--warm-up", "0", "--quiet", "-o", str(file)]) == 0
    result = BenchResult.model_validate_json(file.read_bytes())
    (point,) = result.points
    assert (point.succeeded, point.outputs, point.errors) == (3, 3, [])
    assert point.steps == 18
    assert point.cached_steps
    assert {"client_wait", "queue", "denoise", "rest"} <= set(point.stages)
    assert point.stages["denoise"].value > 0
    assert result.server["pipeline_class"]


def test_a_field_that_the_server_refuses_is_an_error_with_its_code(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    flags = ["--field", "num_frames=3", "--requests", "1", "--warm-up", "0", "--quiet", "-o", str(file)]
    assert bench.main([server.url, *flags]) == 1
    (error,) = BenchResult.model_validate_json(file.read_bytes()).points[0].errors
    assert error.kind.startswith("400 ")
    assert "num_frames" in (error.message or "")
