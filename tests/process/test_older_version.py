"""A rollout from an older version, whose code and tables are those of its commit, on one database."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.jobs import LONG, PROMPT, ended, submitted
from tests.support.postgres import INSTALLED, postgres
from tests.support.server import ROOT, UNWARMED, Server, bentoml_serving, options, ready, serving

OLDER = "98cbab0"
"""The last commit before migration 0007. It runs with today's requirements."""
WITHIN_S = 300
STEPS = 6


def has_commit() -> bool:
    asked = ["git", "cat-file", "-e", f"{OLDER}^{{commit}}"]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.apart,
    pytest.mark.skipif(not has_commit(), reason=f"this clone's history does not reach back to {OLDER}"),
]


@pytest.fixture
def older_code(tmp_path: Path) -> Path:
    folder = tmp_path / "older"
    folder.mkdir()
    archive = subprocess.run(["git", "archive", OLDER], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x"], cwd=folder, input=archive, check=True)
    return folder


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Settings of servers that share jobs and outputs."""
    with ExitStack() as stack:
        sqlite = f"sqlite:///{tmp_path}/jobs.sqlite3"
        database = stack.enter_context(postgres()).new_database() if INSTALLED else sqlite
        shared = options(JOBS__DATABASE=database, JOBS__LEASE_S=10, OUTPUTS__ROOT=str(tmp_path / "outputs"))
        yield UNWARMED | shared


def test_nothing_is_lost_as_a_newer_version_takes_over(
    tmp_path: Path, older_code: Path, environ: dict[str, str]
) -> None:
    of_older = environ | {"PYTHONPATH": os.pathsep.join([str(older_code / "src"), str(older_code)])}

    def older(name: str) -> Server:
        return stack.enter_context(bentoml_serving(tmp_path / name, cwd=older_code, environ=of_older))

    with ExitStack() as stack:
        one, two = older("one"), older("two")
        for server in (one, two):
            server.wait_for(ready, WITHIN_S)
        jobs = [submitted(server, seed=seed, num_inference_steps=STEPS) for seed in range(4) for server in (one, two)]

        newer = stack.enter_context(serving(tmp_path / "newer", environ=environ))
        newer.wait_for(ready, WITHIN_S)
        unwanted = submitted(one, **LONG)
        assert newer.session.delete(newer.url + unwanted).json()["state"] == "cancelled"
        # The older ones go on: with new jobs, with those that the newer one took, and with what it has drawn.
        jobs += [submitted(server, seed=5, num_inference_steps=STEPS) for server in (one, two, newer)]
        for server in (one, newer):
            for job in jobs[:2]:
                assert ended(server, job, WITHIN_S)["state"] == "succeeded"
        jobs += [submitted(server, seed=6, num_inference_steps=STEPS) for server in (one, two)]
        one.process.send_signal(signal.SIGTERM)
        os.killpg(two.process.pid, signal.SIGKILL)
        assert one.process.wait(WITHIN_S) == 0

        for job in jobs:
            answer = ended(newer, job, WITHIN_S)
            assert answer["state"] == "succeeded", answer
            assert newer.get(f"{job}/outputs/0").content.startswith(b"\x89PNG")
        assert "Traceback" not in newer.log()
        assert "Traceback" not in one.log()

        # That version does not start on newer tables yet: it says so, and touches no job.
        back = older("back")
        back.wait_for(lambda server: "its tables are of another version of this server" in server.log(), WITHIN_S)
        back.wait_for(lambda server: server.post("/jobs", json={"prompt": PROMPT}).status_code == 503, WITHIN_S)
