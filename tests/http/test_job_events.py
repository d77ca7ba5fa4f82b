"""The events of jobs over HTTP, as curl, Python and a browser read them."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
import requests
from selenium.webdriver import Chrome

from tests.support.browser import needs_browser
from tests.support.jobs import LONG, submitted
from tests.support.jobs_events import Told, follow, read
from tests.support.server import Server, ready, serving

pytestmark = pytest.mark.slow


def states(told: list[Told]) -> list[str]:
    return [event.data["state"] for event in told if event.kind == "state"]


def test_a_job_is_followed_from_its_queue_to_its_result(server: Server) -> None:
    before = submitted(server, **LONG)
    job = submitted(server, num_inference_steps=60, speed="fast", seed=5)
    events = follow(server, job)
    told = [next(events), next(events)]
    assert [event.kind for event in told] == ["state", "position"]
    assert told[1].number is None
    assert told[1].data["position"] == 1
    server.session.delete(server.url + before)
    told += events
    assert states(told) == ["queued", "running", "succeeded"]
    progress = [event.data for event in told if event.kind == "progress"]
    assert len(progress) > 20  # each step, but for those that the loop was late for
    assert [each["step"] for each in progress] == sorted({each["step"] for each in progress})
    assert progress[-1] | {"seconds_left": 0} == {
        "step": 60,
        "steps": 60,
        "cached_steps": progress[-1]["cached_steps"],
        "seconds_left": 0,
    }
    answer = server.get(job).json()
    [result] = [event.data for event in told if event.kind == "result"]
    assert result == answer["result"]
    assert answer["cached_steps"] == progress[-1]["cached_steps"] == result["cache"]["cached_steps"] > 10
    assert [event.kind for event in told[-2:]] == ["result", "state"]
    given = [event.number for event in told if event.number is not None]
    assert given == sorted(set(given))


def test_a_follower_that_comes_again_goes_on_where_it_was(server: Server) -> None:
    job = submitted(server, **LONG)
    events = follow(server, job)
    seen = [next(events) for _ in range(6)]
    events.close()  # type: ignore[attr-defined]
    last = max(event.number for event in seen if event.number is not None)
    again = follow(server, job, last)
    told = [next(again) for _ in range(3)]
    assert all(event.kind == "progress" for event in told)
    assert min(event.number or 0 for event in told) > last
    server.session.delete(server.url + job)
    told += again
    assert states(told) == ["cancelled"]
    # An EventSource comes again when the stream ends; it is told to stay away, and one that has nothing gets all.
    end = told[-1].number
    assert requests.get(f"{server.url}{job}/events", headers={"Last-Event-ID": str(end)}, timeout=60).status_code == 204
    assert states(list(follow(server, job))) == ["queued", "running", "cancelled"]


def test_a_failure_is_told_with_its_reason(server: Server) -> None:
    told = list(follow(server, submitted(server, num_inference_steps=4, cache={"strict": True})))
    assert [event.kind for event in told[-2:]] == ["failure", "state"]
    assert told[-2].data["code"] == "cache_not_engaged"
    assert told[-1].data["state"] == "failed"


def test_what_is_no_job_or_no_number_is_refused(server: Server) -> None:
    assert server.get("/jobs/none/events").status_code == 404
    job = submitted(server, num_inference_steps=2)
    answer = requests.get(f"{server.url}{job}/events", headers={"Last-Event-ID": "x"}, timeout=60)
    assert answer.status_code == 400
    assert "Last-Event-ID" in answer.json()["error"]["message"]
    assert requests.head(f"{server.url}{job}/events", timeout=60).status_code == 200


def test_followers_that_go_leave_the_job_and_others_alone(server: Server) -> None:
    job = submitted(server, **LONG | {"num_images": 1, "num_inference_steps": 60})
    for _ in range(20):
        events = follow(server, job)
        next(events)
        events.close()  # type: ignore[attr-defined]
    assert states(list(follow(server, job)))[-1] == "succeeded"


def test_curl_reads_them(server: Server, tmp_path: Path) -> None:
    job = submitted(server, num_inference_steps=4)
    run = subprocess.run(
        ["curl", "-sN", f"{server.url}{job}/events"], capture_output=True, text=True, timeout=60, check=True
    )
    assert states(list(read(iter(run.stdout.splitlines()))))[-1] == "succeeded"


FOLLOW = """
const told = [], source = new EventSource(arguments[0]), done = arguments[arguments.length - 1];
for (const kind of ["state", "progress", "result"])
  source.addEventListener(kind, event => told.push(kind === "state" ? JSON.parse(event.data).state : kind));
source.onerror = () => { if (source.readyState === EventSource.CLOSED) done(told); };
"""


@needs_browser
def test_a_browser_reads_them_and_stays_away_after_the_last(server: Server, driver: Chrome) -> None:
    driver.get(f"{server.url}/livez")
    job = submitted(server, **LONG | {"num_images": 1})
    told = driver.execute_async_script(FOLLOW, f"{job}/events")
    assert told[:2] == ["queued", "running"]
    assert told[-2:] == ["result", "succeeded"]
    assert "progress" in told


def test_a_drain_is_told_and_what_runs_ends(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.wait_for(ready)
        jobs = [submitted(server, **LONG | {"num_images": 1}) for _ in range(2)]
        running, waiting = (follow(server, job) for job in jobs)
        last = [next(waiting)]
        told = [next(running) for _ in range(5)], last
        server.process.send_signal(signal.SIGTERM)
        told[0].extend(running)
        told[1].extend(waiting)
        assert "draining" in [event.kind for event in told[0]]
        assert states(told[0])[-1] == "succeeded"
        assert states(told[1]) == ["queued"]  # it is for the next server
        assert told[1][-1].kind == "draining"
        assert server.process.wait(60) == -signal.SIGTERM
