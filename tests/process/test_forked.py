"""A forked server, which most tests use, and one of `bentoml serve` answer the same."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.jobs import ended, submitted
from tests.support.server import Server, bentoml_serving, ready, serving

PATHS = ("/openapi.json", "/capabilities", "/get_model_info", "/v1/models", "/loras", "/docs", "/favicon.ico")
METHODS = ("GET", "POST", "DELETE", "PUT", "OPTIONS")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    forked, started = (tmp_path_factory.mktemp(name) for name in ("forked", "started"))
    with serving(forked) as one, bentoml_serving(started) as other:
        for server in (one, other):
            server.wait_for(ready)
        yield one, other
    assert one.process.returncode == -signal.SIGTERM  # by uvicorn, which raises it again in the end
    assert other.process.returncode == 0


def test_pictures_are_the_same_to_the_bit(both: tuple[Server, Server]) -> None:
    for fields in ({"seed": 5}, {"seed": 6, "speed": "fast", "num_images": 2}, {"seed": 7, "speed": "lossless"}):
        one, other = (server.generate(**fields).json() for server in both)
        assert one["images"] == other["images"]
        assert one["cache"] == other["cache"]


def test_routes_answer_the_same(both: tuple[Server, Server]) -> None:
    routes = list(both[0].get("/openapi.json").json()["paths"])
    assert "/generate" in routes
    for path in PATHS:
        one, other = (server.get(path) for server in both)
        assert (one.status_code, steady(one.text)) == (other.status_code, steady(other.text)), path
    for path in (*routes, "/nothing"):
        for method in METHODS:
            one, other = (server.session.request(method, server.url + path, json={"seed": "x"}) for server in both)
            assert one.status_code == other.status_code, (method, path)
            assert sorted(one.headers) == sorted(other.headers), (method, path)


def steady(text: str) -> str:
    """An answer without times, addresses and what differs by the folder."""
    return re.sub(r"127\.0\.0\.1:\d+|\d+\.\d+|\d{5,}", "#", text)


def test_metrics_have_the_same_series_from_the_start(tmp_path: Path, both: tuple[Server, Server]) -> None:
    names = [set(re.findall(r"^# TYPE (\S+)", server.get("/metrics").text, re.M)) for server in both]
    assert names[0] == names[1]
    assert "cache_dit_serving_generations" in " ".join(names[0])


def test_a_job_is_done_and_its_output_served(both: tuple[Server, Server]) -> None:
    pictures = []
    for server in both:
        job = submitted(server, seed=8)
        assert ended(server, job)["state"] == "succeeded"
        pictures.append(server.get(f"{job}/outputs/0").content)
    assert pictures[0] == pictures[1]
