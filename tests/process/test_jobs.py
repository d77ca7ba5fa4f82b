"""Jobs outlive the server."""

from __future__ import annotations

import signal
from pathlib import Path

import requests

from tests.support.jobs import LONG, ended, states, submitted
from tests.support.server import UNWARMED, Server, ready, serving

SHORT_LEASE = UNWARMED | {"CACHE_DIT_SERVING__JOBS__LEASE_S": "5"}
WITHIN_S = 180
SECOND = LONG | {"num_inference_steps": 30, "num_images": 2}
"""Fields of a request that is drawn to its end, and takes half a second or more."""


def running(server: Server, job: str) -> None:
    server.wait_for(lambda server: server.get(job).json()["step"] > 10, WITHIN_S)


def kill(server: Server) -> None:
    server.process.kill()
    server.process.wait(60)


def test_after_a_kill_what_had_ended_is_there_and_what_had_not_is_drawn_and_a_drain_leaves_what_waits(
    tmp_path: Path,
) -> None:
    with serving(tmp_path, environ=SHORT_LEASE) as server:
        server.wait_for(ready)
        done = submitted(server, seed=5)
        before = ended(server, done, WITHIN_S)
        picture = server.get(f"{done}/outputs/0").content
        cancelled = submitted(server, **LONG)
        server.session.delete(server.url + cancelled)
        first, second = submitted(server, seed=5, **SECOND), submitted(server, seed=5)
        running(server, first)
        kill(server)
    with serving(tmp_path, environ=SHORT_LEASE) as server:
        server.wait_for(ready)
        assert server.get(done).json() == before
        assert server.get(f"{done}/outputs/0").content == picture
        assert server.get(cancelled).json()["state"] == "cancelled"
        assert server.get(second).json()["state"] == "queued"
        again = ended(server, second, WITHIN_S)
        assert states(again) == ["queued", "running", "succeeded"]
        assert server.get(f"{second}/outputs/0").content == picture
        assert states(ended(server, first, WITHIN_S)) == ["queued", "running", "queued", "running", "succeeded"]
        assert len(server.get(first).json()["outputs"]) == SECOND["num_images"]
        files = [file.name for file in server.outputs.rglob("*") if file.is_file()]
        assert sorted(name for name in files if name.endswith(".png")) == sorted(
            Path(url).name for job in (done, second, first) for url in server.get(job).json()["result"]["images"]
        )
        assert not [name for name in files if name.startswith(".partial")]
        listed = [job["id"] for job in server.get("/jobs").json()["jobs"]]
        assert [f"/jobs/{name}" for name in listed] == [second, first, cancelled, done]

        runs, waits = submitted(server, **SECOND), submitted(server, seed=7)
        running(server, runs)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(180) == -signal.SIGTERM
    with serving(tmp_path, environ=SHORT_LEASE) as server:
        server.wait_for(ready)
        assert states(server.get(runs).json()) == ["queued", "running", "succeeded"]
        assert states(ended(server, waits, WITHIN_S)) == ["queued", "running", "succeeded"]


def test_what_runs_fails_after_a_kill_where_the_operator_says_so_and_is_put_back_by_a_drain_past_its_time(
    tmp_path: Path,
) -> None:
    environ = SHORT_LEASE | {
        "CACHE_DIT_SERVING__SERVER__DRAIN_S": "0.2",
        "CACHE_DIT_SERVING__JOBS__INTERRUPTED": "fail",
    }
    with serving(tmp_path, environ=environ) as server:
        server.wait_for(ready)
        killed = submitted(server, **LONG)
        running(server, killed)
        kill(server)
    with serving(tmp_path, environ=environ) as server:
        server.wait_for(ready)
        answer = ended(server, killed, WITHIN_S)
        assert states(answer) == ["queued", "running", "failed"]
        assert answer["error"]["code"] == "interrupted"
        assert "submit it again" in answer["error"]["message"]

        job = submitted(server, **SECOND | {"num_images": 3})
        running(server, job)
        with requests.get(f"{server.url}{job}/events", stream=True, timeout=WITHIN_S) as events:
            server.process.send_signal(signal.SIGTERM)
            told = [line for line in events.iter_lines(decode_unicode=True) if line.startswith("event:")]
        assert "event: draining" in told
        assert told[-1] == "event: state"  # queued again
        assert server.process.wait(180) == -signal.SIGTERM
        assert "what runs is not done after 0.2 s" in server.log()
    with serving(tmp_path, environ=environ) as server:
        server.wait_for(ready)
        again = ["queued", "running", "queued", "running"]
        assert states(ended(server, job, WITHIN_S)) == [*again, "succeeded"]


def test_a_database_that_is_not_open_yet_is_named_and_awaited_and_the_rest_is_served(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database " * 500)
    environ = SHORT_LEASE | {"CACHE_DIT_SERVING__JOBS__DATABASE": f"sqlite:///{tmp_path}/file"}
    with serving(tmp_path, environ=environ) as server:
        server.wait_for(lambda server: server.get("/capabilities").status_code == 200)
        answer = server.post("/jobs", json={"prompt": "a red apple"})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "store_unavailable"
        assert server.get("/readyz").status_code == 503
        health = server.get("/health")
        assert health.status_code == 503
        assert health.json()["error"]["code"] == "loading"
        assert health.json()["error"]["message"] == answer.json()["error"]["message"]
        assert "the server's log says why" in answer.json()["error"]["message"]
        assert str(tmp_path) not in answer.text
        assert "jobs.database cannot be opened: file is not a database" in server.log()
        assert "Retry-After" in answer.headers
        assert server.generate().status_code == 200
        assert server.log().count("jobs.database cannot be opened") == 1
        (tmp_path / "file").unlink()
        server.wait_for(ready)
        assert server.post("/jobs", json={"prompt": "a red apple"}).status_code == 202
