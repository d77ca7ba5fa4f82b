"""Two servers of one user on one machine, as the README has a reader start them."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from cache_dit_serving.held_folder import HeldFolder, prefix_of
from tests.support.answers import metric
from tests.support.processes import workers
from tests.support.server import UNWARMED, Server, ready, supervised


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The system's folder for temporary files, for this process and those that it starts."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # a short path, as sockets need one
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def folders(temporary: Path) -> set[Path]:
    return {path for path in temporary.glob(f"{prefix_of('server')}*") if path.is_dir()}


def succeeded(server: Server) -> float:
    return metric(server, "cache_dit_serving_generations_total", outcome="succeeded")


def test_each_server_keeps_its_metrics_and_leaves_no_folder_worker_or_port(tmp_path: Path, temporary: Path) -> None:
    home = UNWARMED | {"BENTOML_HOME": str(tmp_path / "home")}
    with supervised(tmp_path / "one", environ=home) as one:
        one.wait_for(ready)
        assert one.generate(num_inference_steps=2).status_code == 200
        (first,) = folders(temporary)
        assert stat.S_IMODE(first.stat().st_mode) == 0o700
        with supervised(tmp_path / "other", environ=home) as other:
            other.wait_for(lambda server: server.get("/livez").status_code == 200)
            assert one.generate(num_inference_steps=2).status_code == 200
            assert (succeeded(one), succeeded(other)) == (2, 0)
            assert len(folders(temporary)) == 2
        assert folders(temporary) == {first}
        (worker,) = workers(one.process.pid)
        worker.suspend()
        one.process.kill()
        one.process.wait()
        # Its worker lives, and holds the folder.
        HeldFolder("server").remove()
        assert first.exists()
        # It ends as soon as it sees that its supervisor is gone.
        worker.resume()
        worker.wait(60)
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{one.url}/livez", timeout=60)
        HeldFolder("server").remove()
        assert not first.exists()
