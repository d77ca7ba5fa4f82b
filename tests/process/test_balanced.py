"""Three servers with keys behind HAProxy, on one PostgreSQL and one object storage."""

from __future__ import annotations

import io
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from tests.support.balancer import Balancer, balancing, needs_haproxy
from tests.support.jobs import LONG, PROMPT, states
from tests.support.postgres import needs_postgres, postgres
from tests.support.s3 import BUCKET, CREDENTIALS, s3_server
from tests.support.server import UNWARMED, Server, free_port, options, ready, serving
from tests.support.waiting import wait_until

pytestmark = [needs_haproxy, needs_postgres, pytest.mark.slow]
WITHIN_S = 180
KEY = "sk-studio-0123456789"
HEADERS = {"Authorization": f"Bearer {KEY}"}
STEPS = 6
FINAL = ("succeeded", "failed", "cancelled")


@dataclass
class Fleet:
    """Servers on fixed ports, and the balancer before them."""

    folder: Path
    ports: list[int]
    environ: dict[str, str]
    balancer: Balancer
    stack: ExitStack
    servers: dict[int, Server] = field(default_factory=dict)
    starts: int = 0

    def start(self, number: int, version: str) -> None:
        """A server of a version, numbered from 1: the version is the name that it gives its model."""
        self.starts += 1
        environ = self.environ | options(SERVER__MODEL_NAMES=[version])
        folder, port = self.folder / f"start-{self.starts}", self.ports[number - 1]
        server = self.servers[number] = self.stack.enter_context(serving(folder, environ=environ, port=port))
        server.session.headers.update(HEADERS)

    def ask(self, method: str, path: str, **given: Any) -> requests.Response:
        """The answer through the balancer."""
        return requests.request(method, self.balancer.url + path, headers=HEADERS, timeout=WITHIN_S, **given)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    ports = [free_port() for _ in range(3)]
    with ExitStack() as stack:
        s3 = stack.enter_context(s3_server(folder))
        environ = (
            CREDENTIALS
            | UNWARMED
            | {
                "CACHE_DIT_SERVING__JOBS__DATABASE": stack.enter_context(postgres()).new_database(),
                "CACHE_DIT_SERVING__JOBS__LEASE_S": "5",
                "CACHE_DIT_SERVING__OUTPUTS__STORE": f"s3://{BUCKET}/made",
                "CACHE_DIT_SERVING__OUTPUTS__STORE_OPTIONS": json.dumps(s3.options),
                "CACHE_DIT_SERVING__SERVER__API_KEYS": json.dumps([{"name": "studio", "key": KEY}]),
            }
        )
        fleet = Fleet(folder, ports, environ, stack.enter_context(balancing(folder, ports)), stack)
        for number in (1, 2, 3):
            fleet.start(number, "old")
        for number, server in fleet.servers.items():
            server.wait_for(ready, WITHIN_S)
            fleet.balancer.wait_for(number, "UP")
        yield fleet


def job_at(server: Server, **fields: Any) -> str:
    answer = server.post("/jobs", json={"prompt": PROMPT} | fields)
    assert answer.status_code == 202, answer.text
    return str(answer.headers["Location"])


def pixels(url: str) -> bytes:
    """Those of an output, by its signed URL alone."""
    answer = requests.get(url, timeout=WITHIN_S)
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content)).convert("RGB").tobytes()


def test_a_job_is_submitted_followed_cancelled_and_fetched_at_different_servers(fleet: Fleet) -> None:
    one, two, three = (fleet.servers[number] for number in (1, 2, 3))
    assert requests.get(f"{fleet.balancer.url}/jobs", timeout=60).status_code == 401
    unwanted, wanted = job_at(one, **LONG), job_at(one, seed=5, num_inference_steps=STEPS)
    assert three.session.delete(three.url + unwanted).json()["state"] == "cancelled"
    assert "event: result" in two.get(f"{wanted}/events").text
    answer = three.get(wanted).json()
    assert states(answer)[-1] == "succeeded"
    alone = one.generate(seed=5, num_inference_steps=STEPS, output_format="url").json()
    assert pixels(answer["result"]["images"][0]) == pixels(alone["images"][0])


def test_a_caller_that_leaves_the_balancer_stops_its_generation(fleet: Fleet) -> None:
    body = {"prompt": PROMPT} | LONG
    with pytest.raises(requests.Timeout):
        requests.post(f"{fleet.balancer.url}/generate", headers=HEADERS, json=body, timeout=(60, 1))
    wait_until(lambda: any("POST /generate answered 499" in each.log() for each in fleet.servers.values()), 180)


class Load:
    """Clients that send until they are stopped, and what they were answered."""

    def __init__(self, fleet: Fleet) -> None:
        self.promised: dict[str, int] = {}
        """Seeds of the jobs."""
        self.drawn: dict[int, list[bytes]] = {}
        """Pictures without a job, by seed."""
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.kills = False
        """A server is being killed: it cuts off what it has begun to send, which no balancer can take back."""
        self._fleet = fleet
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(3)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(WITHIN_S)

    def _client(self, number: int) -> None:
        turn = 0
        while not self._stop.is_set():
            turn += 1
            seed = (number + turn) % 4
            body = {"prompt": PROMPT, "seed": seed, "num_inference_steps": STEPS}
            if turn % 2:
                key = {"Idempotency-Key": f"{number}-{turn}"}
                answer = self._ask("POST", "/jobs", body, key)
                if answer is not None and answer.status_code == 202:
                    with self._lock:
                        self.promised[answer.json()["id"]] = seed
            else:
                answer = self._ask("POST", "/generate", body | {"output_format": "url"}, {})
                if answer is not None and answer.status_code == 200:
                    with self._lock:
                        self.drawn.setdefault(seed, []).append(pixels(answer.json()["images"][0]))
            self._ask("GET", "/jobs", None, {})
            self._stop.wait(0.3)

    def _ask(self, method: str, path: str, body: object, headers: dict[str, str]) -> requests.Response | None:
        try:
            answer = requests.request(
                method, self._fleet.balancer.url + path, json=body, headers=HEADERS | headers, timeout=WITHIN_S
            )
        except requests.RequestException as error:
            if self.kills and method == "GET" and isinstance(error, requests.exceptions.ChunkedEncodingError):
                return None
            with self._lock:
                self.wrong.append(f"{method} {path}: {error!r}")
            return None
        with self._lock:
            self.statuses[answer.status_code] += 1
            if answer.status_code not in (200, 202) and not (
                answer.status_code in (429, 503) and answer.headers.get("Retry-After")
            ):
                self.wrong.append(f"{method} {path}: {answer.status_code} {answer.headers} {answer.text}")
        return answer


def test_nothing_is_lost_as_one_is_killed_and_all_are_exchanged_under_load(fleet: Fleet) -> None:
    with Load(fleet) as load:
        fleet.servers[3].wait_for(lambda _: load.statuses[202] > 2, WITHIN_S)
        load.kills = True
        fleet.servers[3].process.kill()
        fleet.servers[3].process.wait(60)
        fleet.start(3, "new")
        load.kills = False
        fleet.balancer.wait_for(3, "UP")
        for number in (1, 2):
            fleet.balancer.drain(number)
            fleet.balancer.wait_for(number, "DRAIN")
            before = fleet.servers[number].process
            before.send_signal(signal.SIGTERM)
            before.wait(WITHIN_S)
            fleet.start(number, "new")
            fleet.servers[number].wait_for(ready, WITHIN_S)
            fleet.balancer.take_back(number)
            fleet.balancer.wait_for(number, "UP")
    assert load.wrong == []
    assert load.statuses[200] > 0
    for server in fleet.servers.values():
        assert server.get("/v1/models").json()["data"][0]["id"] == "new"
    pictures = dict(load.drawn)
    end = time.monotonic() + WITHIN_S
    for job, seed in load.promised.items():
        while (answer := fleet.ask("GET", f"/jobs/{job}").json())["state"] not in FINAL:
            assert time.monotonic() < end, answer
            time.sleep(0.1)
        assert answer["state"] == "succeeded", answer
        pictures.setdefault(seed, []).append(pixels(answer["result"]["images"][0]))
    assert len(load.promised) > 2
    for seed, made in pictures.items():
        alone = fleet.servers[1].generate(seed=seed, num_inference_steps=STEPS, output_format="url").json()
        assert set(made) == {pixels(alone["images"][0])}, seed
