"""Jobs as values, and by a server's routes."""

from __future__ import annotations

import time
from typing import Any

from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.schemas.jobs import JobState
from tests.support.server import Server

QUEUED, RUNNING = JobState.QUEUED, JobState.RUNNING
PROMPT = "a red apple on a blue background"
LONG: dict[str, Any] = {"num_inference_steps": 100, "num_images": 8, "speed": "lossless"}
"""Fields of a request that takes six seconds or more: for one that is cancelled."""


def record(name: str = "one", *states: JobState, **fields: Any) -> JobRecord:
    """A job that came into each state a second after the one before."""
    history = tuple((state, 1000.0 + second) for second, state in enumerate(states or (QUEUED,)))
    request = '{"request": {}, "base_url": "http://localhost:3000"}'
    given: dict[str, Any] = {"id": name, "history": history, "steps": 10, "request": request}
    return JobRecord(**(given | fields))


def submitted(server: Server, **fields: Any) -> str:
    """The route of a job that was admitted."""
    answer = server.post("/jobs", json={"prompt": PROMPT} | fields)
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == f"/jobs/{answer.json()['id']}"
    return str(answer.headers["Location"])


def ended(server: Server, job: str, within_s: float = 180) -> dict[str, Any]:
    """A job's answer once its state is final."""
    end = time.monotonic() + within_s
    while (answer := server.get(job).json())["state"] in ("queued", "running"):
        assert time.monotonic() < end, answer
        time.sleep(0.05)
    return dict(answer)


def states(answer: dict[str, Any]) -> list[str]:
    """Those that a job's answer says it came into."""
    return [moment["state"] for moment in answer["history"]]
