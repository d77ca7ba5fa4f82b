"""A server deletes what is too old or too much, and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.support.jobs import ended, submitted
from tests.support.server import UNWARMED, ready, serving


def test_what_is_old_goes_with_its_job_and_then_what_is_too_much(tmp_path: Path) -> None:
    environ = UNWARMED | {"CACHE_DIT_SERVING__OUTPUTS__KEEP_S": "3600"}
    with serving(tmp_path, environ=environ) as server:
        server.wait_for(ready)
        old, recent = submitted(server, seed=1, num_images=2), submitted(server, seed=2)
        files = {job: [server.outputs / name for name in names(ended(server, job))] for job in (old, recent)}
        for seed in (3, 4):
            server.generate(seed=seed, output_format="path", output_dir="mine")
    loose = sorted((server.outputs / "mine").iterdir())
    (server.outputs / "mine" / "notes.png").write_text("the operator's own")
    aged = [*files[old], loose[0], server.outputs / "mine" / "notes.png"]
    for file in aged:
        os.utime(file, (time.time() - 4000,) * 2)
    for number, file in enumerate([*files[recent], loose[1]]):
        os.utime(file, (time.time() - 500 + number,) * 2)
    with serving(tmp_path, environ=environ) as server:
        server.wait_for(lambda server: server.get(old).status_code == 404)
        server.wait_for(lambda server: "2 jobs and outputs of no job deleted" in server.log())
        assert [file.exists() for file in (*files[old], *loose, *files[recent])] == [False, False, False, True, True]
        assert aged[-1].exists()
        assert server.get(recent).json()["state"] == "succeeded"
        assert 'cache_dit_serving_outputs_deleted_total{reason="age"} 2.0' in server.get("/metrics").text
    size = loose[1].stat().st_size
    with serving(tmp_path, environ=environ | {"CACHE_DIT_SERVING__OUTPUTS__MAX_BYTES": str(size)}) as server:
        server.wait_for(lambda server: server.get(recent).status_code == 404)
        assert loose[1].exists()
        assert not (server.outputs / recent.removeprefix("/")).exists()


def names(answer: dict[str, object]) -> list[str]:
    result = answer["result"]
    assert isinstance(result, dict)
    return [str(url).split("/outputs/")[1] for url in result["images"]]
