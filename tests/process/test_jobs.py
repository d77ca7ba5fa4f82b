"""Jobs outlive the server."""

from __future__ import annotations

import base64
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import requests

from tests.support.jobs import LONG, PROMPT, ended, states, submitted
from tests.support.server import Server, bentoml_serving, ready, serving

SHORT_LEASE = {"CACHE_DIT_SERVING__JOBS__LEASE_S": "5"}
WITHIN_S = 180
SECONDS = LONG | {"num_images": 2}
"""Fields of a request that is drawn to its end, and takes two seconds or more."""


def running(server: Server, job: str) -> None:
    server.wait_for(lambda server: server.get(job).json()["step"] > 10, WITHIN_S)


def kill(server: Server) -> None:
    server.process.kill()
    server.process.wait(10)


def test_after_a_kill_what_had_ended_is_there_and_what_had_not_is_drawn(tmp_path: Path) -> None:
    with serving(tmp_path, environ=SHORT_LEASE) as server:
        server.wait_for(ready)
        done = submitted(server, seed=5)
        before = ended(server, done, WITHIN_S)
        picture = server.get(f"{done}/outputs/0").content
        cancelled = submitted(server, **LONG)
        server.session.delete(server.url + cancelled)
        first, second = submitted(server, seed=5, **SECONDS), submitted(server, seed=5)
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
        assert len(server.get(first).json()["outputs"]) == 2
        files = [file.name for file in server.outputs.rglob("*") if file.is_file()]
        assert sorted(name for name in files if name.endswith(".png")) == sorted(
            Path(url).name for job in (done, second, first) for url in server.get(job).json()["result"]["images"]
        )
        assert not [name for name in files if name.startswith(".partial")]
        listed = [job["id"] for job in server.get("/jobs").json()["jobs"]]
        assert [f"/jobs/{name}" for name in listed] == [second, first, cancelled, done]


def test_what_ran_when_the_server_was_killed_fails_where_the_operator_says_so(tmp_path: Path) -> None:
    environ = SHORT_LEASE | {"CACHE_DIT_SERVING__JOBS__INTERRUPTED": "fail"}
    with serving(tmp_path, environ=environ) as server:
        server.wait_for(ready)
        job = submitted(server, **LONG)
        running(server, job)
        kill(server)
    with serving(tmp_path, environ=environ) as server:
        server.wait_for(ready)
        answer = ended(server, job, WITHIN_S)
        assert states(answer) == ["queued", "running", "failed"]
        assert answer["error"]["code"] == "interrupted"
        assert "submit it again" in answer["error"]["message"]


def test_a_drained_server_leaves_what_waits_to_the_next_one(tmp_path: Path) -> None:
    with serving(tmp_path, environ=SHORT_LEASE) as server:
        server.wait_for(ready)
        first, second = submitted(server, **SECONDS), submitted(server, seed=7)
        running(server, first)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == -signal.SIGTERM
    with serving(tmp_path, environ=SHORT_LEASE) as server:
        server.wait_for(ready)
        assert states(server.get(first).json()) == ["queued", "running", "succeeded"]
        assert states(ended(server, second, WITHIN_S)) == ["queued", "running", "succeeded"]


def test_past_its_time_a_drained_server_puts_back_what_runs(tmp_path: Path) -> None:
    environ = SHORT_LEASE | {
        "CACHE_DIT_SERVING__SERVER__DRAIN_S": "0.5",
        "CACHE_DIT_SERVING__JOBS__INTERRUPTED": "fail",
    }
    with serving(tmp_path, environ=environ) as server:
        server.wait_for(ready)
        job = submitted(server, **LONG)
        running(server, job)
        with requests.get(f"{server.url}{job}/events", stream=True, timeout=WITHIN_S) as events:
            server.process.send_signal(signal.SIGTERM)
            told = [line for line in events.iter_lines(decode_unicode=True) if line.startswith("event:")]
        assert "event: draining" in told
        assert told[-1] == "event: state"  # queued again
        assert server.process.wait(60) == -signal.SIGTERM
        assert "what runs is not done after 0.5 s" in server.log()
    with serving(tmp_path, environ=environ) as server:
        server.wait_for(ready)
        again = ["queued", "running", "queued", "running"]
        assert states(ended(server, job, WITHIN_S)) == [*again, "succeeded"]


def test_several_workers_share_their_jobs(tmp_path: Path) -> None:
    environ = SHORT_LEASE | {"CACHE_DIT_SERVING__SERVER__WORKERS": "2", "CACHE_DIT_SERVING__JOBS__LEASE_S": "10"}
    with bentoml_serving(tmp_path, environ=environ) as server:
        server.wait_for(lambda server: server.log().count("is ready on") == 2, WITHIN_S)
        expected = server.generate(prompt=PROMPT, seed=5).json()["images"]
        jobs = [submitted(server, seed=5, speed="lossless", num_inference_steps=50) for _ in range(4)]
        jobs += [submitted(server, seed=5) for _ in range(2)]
        cancelled = submitted(server, **LONG)
        assert requests.delete(server.url + cancelled, timeout=WITHIN_S).json()["state"] == "cancelled"
        for job in jobs:
            with requests.get(f"{server.url}{job}/events", stream=True, timeout=WITHIN_S) as events:  # of any worker
                told = [line for line in events.iter_lines(decode_unicode=True) if line.startswith("data:")]
            assert '"state":"succeeded"' in told[-1]
            for _ in range(4):  # each on a connection of its own, to a worker of its own choice
                answer = requests.get(server.url + job, timeout=10).json()
                assert states(answer) == ["queued", "running", "succeeded"]
        drawn = requests.get(f"{server.url}{jobs[-1]}/outputs/0", timeout=10).content
        assert base64.b64encode(drawn).decode() == expected[0]

        # Steps are told by both workers as they are done, not once a second.
        job = submitted(server, **SECONDS)
        assert all(steps >= 20 for steps in steps_told(server, job, followers=8))

        # A worker that is killed leaves its jobs to the other.
        first = [submitted(server, **SECONDS) for _ in range(2)]
        for job in first:
            running(server, job)
        psutil.Process(server.process.pid).children()[0].kill()
        server.session.close()  # it may hold a connection to that one
        again = [states(ended(server, job, WITHIN_S)) for job in first]
        assert sorted(map(len, again)) == [3, 5]
        assert all(each[-1] == "succeeded" for each in again)


def steps_told(server: Server, job: str, followers: int) -> list[int]:
    """The number of steps that each follower hears of, by connections to workers of their own choice."""

    def follow(_: int) -> int:
        with requests.get(f"{server.url}{job}/events", stream=True, timeout=WITHIN_S) as events:
            return sum(line == "event: progress" for line in events.iter_lines(decode_unicode=True))

    with ThreadPoolExecutor(followers) as threads:
        return list(threads.map(follow, range(followers)))


def test_a_database_that_cannot_be_opened_is_named_and_the_rest_is_served(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database " * 500)
    environ = SHORT_LEASE | {"CACHE_DIT_SERVING__JOBS__DATABASE": f"sqlite:///{tmp_path}/file"}
    with serving(tmp_path, environ=environ) as server:
        server.wait_for(ready)
        answer = server.post("/jobs", json={"prompt": "a red apple"})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "store_unavailable"
        assert "the server's log says why" in answer.json()["error"]["message"]
        assert str(tmp_path) not in answer.text
        assert "jobs.database cannot be opened: file is not a database" in server.log()
        assert "Retry-After" in answer.headers
        assert server.generate().status_code == 200
        assert server.log().count("jobs.database cannot be opened") == 1
