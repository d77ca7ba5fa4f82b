"""Limits of callers over two servers that know nothing of each other but one database."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.answers import metric
from tests.support.jobs import LONG, PROMPT
from tests.support.postgres import INSTALLED, postgres
from tests.support.renewed import renewed
from tests.support.server import Server, options, serving

WITHIN_S = 180
LEASE_S = 5
RATED, OTHER, SINGLE, FREE = (f"sk-{name}-{'x' * 16}" for name in ("rated", "other", "single", "free"))
KEYS = [
    {"name": "rated", "key": RATED, "requests_per_minute": 3},
    {"name": "other", "key": OTHER, "requests_per_minute": 3, "max_live": 1},
    {"name": "single", "key": SINGLE, "max_live": 1},
    {"name": "free", "key": FREE},
]


@pytest.fixture(scope="module")
def alive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], list[Server]]]:
    """The two servers, although a test has killed one."""
    folder: Path = tmp_path_factory.mktemp("limits")
    with ExitStack() as stack:
        database = stack.enter_context(postgres()).new_database() if INSTALLED else f"sqlite:///{folder}/jobs.sqlite3"
        environ = options(
            JOBS__DATABASE=database,
            JOBS__LEASE_S=LEASE_S,
            OUTPUTS__ROOT=str(folder / "outputs"),
            SERVER__API_KEYS=KEYS,
            SERVER__WARM_UP=False,
        )

        def begin() -> AbstractContextManager[Server]:
            return serving(folder / uuid.uuid4().hex[:4], environ=environ)

        both = [stack.enter_context(renewed(begin, within_s=WITHIN_S)) for _ in range(2)]
        yield lambda: [server() for server in both]


@pytest.fixture
def servers(alive: Callable[[], list[Server]]) -> list[Server]:
    return alive()


def sent(server: Server, key: str, path: str = "/generate", **fields: Any) -> requests.Response:
    body = {"prompt": PROMPT, "seed": 1, "num_inference_steps": 4} | fields
    return requests.post(server.url + path, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=WITHIN_S)


def test_requests_of_a_minute_are_those_at_both_servers(servers: list[Server]) -> None:
    answers = [sent(server, RATED) for _, server in zip(range(6), cycle(servers), strict=False)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429, 429]
    assert {answer.json()["error"]["code"] for answer in answers[3:]} == {"rate_limit_exceeded"}
    assert all(1 <= int(answer.headers["Retry-After"]) <= 20 for answer in answers[3:])
    assert sent(servers[0], OTHER).status_code == 200
    assert sent(servers[1], FREE).status_code == 200


def test_a_generation_counts_at_both_servers_until_its_answer(servers: list[Server]) -> None:
    one, other = servers
    for _ in range(3):  # the answer comes after the place is free
        for server in (one, other):
            assert sent(server, SINGLE).status_code == 200
    with ThreadPoolExecutor(1) as threads:
        runs = threads.submit(lambda: sent(one, SINGLE, "/generate", **LONG | {"num_images": 2}))
        one.wait_for(generates)
        for path in ("/generate", "/jobs"):
            refused = sent(other, SINGLE, path)
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
            assert int(refused.headers["Retry-After"]) >= 1
        assert sent(other, FREE).status_code == 200
        assert runs.result().status_code == 200
    assert sent(other, SINGLE).status_code == 200
    assert [metric(server, "cache_dit_serving_unshared_limits_total", limit="max_live") for server in servers] == [0, 0]


def test_a_server_that_is_killed_frees_its_places_after_its_lease(servers: list[Server]) -> None:
    one, other = servers
    with ThreadPoolExecutor(1) as threads:
        lost = threads.submit(lambda: sent(one, SINGLE, "/generate", **LONG))
        one.wait_for(generates)
        killed = time.monotonic()
        one.process.kill()
        one.process.wait(60)
        with pytest.raises(requests.ConnectionError):
            lost.result()
    assert sent(other, SINGLE).status_code == 429
    other.wait_for(lambda server: sent(server, SINGLE).status_code == 200, WITHIN_S)
    assert time.monotonic() - killed > LEASE_S - 2


def generates(server: Server) -> bool:
    """Whether a long generation runs."""
    health = requests.get(f"{server.url}/health", timeout=60).json()
    return bool(health["queue"]["step"] > 5)
