"""Servers that know nothing of each other but one PostgreSQL and one folder of outputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.support.jobs import LONG, ended, states, submitted
from tests.support.postgres import Postgres, needs_postgres, postgres
from tests.support.server import UNWARMED, Server, ready, serving

pytestmark = needs_postgres
WITHIN_S = 180
SECOND = LONG | {"num_inference_steps": 60, "num_images": 2}
"""Fields of a request that is drawn to its end, and takes more than a second."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture(scope="module")
def replicas(cluster: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    folder = tmp_path_factory.mktemp("replicas")
    environ = UNWARMED | {
        "CACHE_DIT_SERVING__JOBS__DATABASE": cluster.new_database(),
        "CACHE_DIT_SERVING__OUTPUTS__ROOT": str(folder / "outputs"),
    }
    with serving(folder / "a", environ=environ) as one, serving(folder / "b", environ=environ) as other:
        for server in (one, other):
            server.wait_for(ready, WITHIN_S)
        yield [one, other]


def test_any_replica_answers_for_any_job(replicas: list[Server]) -> None:
    one, other = replicas
    asked_before = other.log().count("POST /jobs")
    runs = submitted(one, **LONG)
    jobs = [submitted(one, seed=seed, num_inference_steps=6) for seed in range(4)]
    other.wait_for(lambda server: any(f"job {job.rpartition('/')[2]} is taken over" in server.log() for job in jobs))
    for cancelled in (submitted(one, **LONG), runs):
        assert other.session.delete(other.url + cancelled).json()["state"] == "cancelled"
        assert states(ended(one, cancelled))[-1] == "cancelled"
    for seed, job in enumerate(jobs):
        assert states(ended(other, job, WITHIN_S)) == ["queued", "running", "succeeded"]
        picture = one.get(f"{job}/outputs/0").content
        assert other.get(f"{job}/outputs/0").content == picture
        assert one.get(job).json()["result"]["seeds"] == [seed]
    assert other.log().count("POST /jobs") == asked_before


def test_nothing_is_lost_while_the_database_is_away(replicas: list[Server], cluster: Postgres) -> None:
    one, other = replicas
    runs, waits = submitted(one, **SECOND), submitted(other, **SECOND)
    one.wait_for(lambda server: server.get(runs).json()["step"] > 10, WITHIN_S)
    cluster.stop()
    try:
        for server in replicas:
            refused = server.post("/jobs", json={"prompt": "a red apple"})
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "store_unavailable"
            assert refused.headers["Retry-After"]
            for path in ("/livez", "/readyz"):  # a balancer that took all servers away would take pictures away too
                assert requests.get(server.url + path, timeout=60).status_code == 200
            health = server.get("/health").json()
            assert (health["status"], health["reason"]) == (
                "ready",
                "jobs are refused: the database of jobs does not answer",
            )
    finally:
        cluster.start()
    for job in (runs, waits):
        answer = ended_once_back(other, job)
        assert states(answer) == ["queued", "running", "succeeded"]
        assert len(answer["outputs"]) == SECOND["num_images"]


def ended_once_back(server: Server, job: str) -> dict[str, Any]:
    server.wait_for(lambda server: server.get(job).status_code == 200, WITHIN_S)
    return ended(server, job, WITHIN_S)
