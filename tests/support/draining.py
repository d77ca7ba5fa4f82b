"""A server that gets SIGTERM while it draws."""

from __future__ import annotations

import signal
from typing import Any

import requests

from tests.support.clients import start
from tests.support.jobs import LONG
from tests.support.server import Server

SECONDS: dict[str, Any] = LONG | {"num_images": 1}
"""Fields of a request that is drawn to its end, and takes more than a second."""


def drains(server: Server, workers: int) -> int:
    """Hold a server to its drain: what runs is finished, all else gets a 503. Return its exit status.

    Args:
        workers: those of the server; with one, a generation waits as well.
    """
    running = start(server, **SECONDS)
    server.wait_for(worker_runs)
    waiting = []
    if workers == 1:
        waiting.append(start(server, num_inference_steps=4))
        server.wait_for(lambda server: server.get("/health").json()["queue"]["waiting"] == 1)
    server.process.send_signal(signal.SIGTERM)
    server.wait_for(lambda server: server.log().count("draining:") == workers)
    for _ in range(8):  # on new connections, each to a worker of its own choice
        for path in ("/readyz", "/health"):
            answer = requests.get(server.url + path, timeout=60)
            assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "draining"
        assert "Retry-After" in answer.headers
        assert answer.headers["Connection"] == "close"
        assert requests.get(f"{server.url}/livez", timeout=60).status_code == 200
    for late in (*waiting, start(server, num_inference_steps=4)):
        refused = late.result(120)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert not running.done()
    assert running.result(120).status_code == 200
    assert len(running.result().json()["images"]) == SECONDS["num_images"]
    return server.process.wait(60)


def worker_runs(server: Server) -> bool:
    """Whether any worker runs a generation: each answers for itself."""
    return any(requests.get(f"{server.url}/health", timeout=60).json()["queue"]["step"] > 5 for _ in range(4))
