"""The traffic of a soak: clients at every door, at a multiple of what the server can draw."""

from __future__ import annotations

import base64
import hashlib
import io
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import requests
from PIL import Image

from benchmarks.hostile import BODIES
from cache_dit_serving.schemas.jobs import JobState

SEEDS = range(8)
PICTURE: dict[str, Any] = {"prompt": "a red apple", "speed": "lossless", "num_inference_steps": 8}
CLIENTS = 24
TIMEOUT_S = 120.0
LIVE = (JobState.QUEUED, JobState.RUNNING)
ASSETS = ("/ui", "/ui/app.js", "/ui/client.js", "/docs", "/openapi.json", "/metrics")


def pixels_of(file: bytes) -> str:
    """Return a hash of the pixels of a picture's file."""
    picture = Image.open(io.BytesIO(file))
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()


@dataclass
class Traffic:
    """Clients that share one clock: a request every `every_s`, each through a door of chance."""

    url: str
    every_s: float
    twins: dict[int, str]
    """Hash of the undisturbed picture of each seed."""
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Statuses and pictures that are promised not to be."""
    lost: list[str] = field(default_factory=list)
    compared: int = 0
    light_ms: dict[str, list[float]] = field(default_factory=lambda: {"/livez": [], "/capabilities": []})
    up: threading.Event = field(default_factory=threading.Event)
    """Cleared while the server is killed and starts again: no request is sent, and the light routes are not timed."""
    ended: threading.Event = field(default_factory=threading.Event)
    _live: dict[str, tuple[int, bool]] = field(default_factory=dict)
    """Seed of each job that was promised and has not been seen to end, and whether it was cancelled."""
    _next: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        self.up.set()
        runs: list[Callable[[], None]] = [lambda n=n: self._client(random.Random(n)) for n in range(CLIENTS)]  # type: ignore[misc]
        self._threads = [threading.Thread(target=run, daemon=True) for run in (*runs, self._light, self._follow)]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """End the clients, and wait until each job that was promised has ended."""
        self.ended.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT_S)
        end = time.monotonic() + TIMEOUT_S
        while self._live and time.monotonic() < end:
            self._look_at_jobs()
            time.sleep(0.2)
        self.lost += [f"{job} has not ended" for job in self._live]

    def _client(self, dice: random.Random) -> None:
        doors = [*DOORS]
        while not self.ended.is_set():
            with self._lock:
                at = self._next = max(self._next + self.every_s, time.monotonic() - 1)
            self.ended.wait(max(0.0, at - time.monotonic()))
            self.up.wait(TIMEOUT_S)
            door = dice.choices(doors, [DOORS[each] for each in doors])[0]
            self._count(door.__name__.removeprefix("_"))
            with suppress(requests.RequestException):
                door(self, dice)

    def _sent(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send a request and judge its status: no 5xx is allowed but a 503 with Retry-After."""
        answer = requests.request(method, self.url + path, **{"timeout": TIMEOUT_S} | options)
        self._count(f"status {answer.status_code}")
        if answer.status_code >= 500 and not (answer.status_code == 503 and "Retry-After" in answer.headers):
            with self._lock:
                self.wrong.append(f"{method} {path}: {answer.status_code}")
        return answer

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _compare(self, seed: int, file: bytes) -> None:
        with self._lock:
            self.compared += 1
            if pixels_of(file) != self.twins[seed]:
                self.wrong.append(f"the picture of seed {seed} is not its twin")

    # The doors

    def _generate(self, dice: random.Random) -> None:
        seed = dice.choice(SEEDS)
        answer = self._sent("POST", "/generate", json=PICTURE | {"seed": seed})
        if answer.ok:
            self._compare(seed, base64.b64decode(answer.json()["images"][0]))

    def _generate_file(self, dice: random.Random) -> None:
        seed = dice.choice(SEEDS)
        answer = self._sent("POST", "/generate", json=PICTURE | {"seed": seed}, headers={"Accept": "image/png"})
        if answer.ok:
            self._compare(seed, answer.content)

    def _job(self, dice: random.Random) -> None:
        seed = dice.choice(SEEDS)
        answer = self._sent("POST", "/jobs", json=PICTURE | {"seed": seed})
        if answer.status_code != 202:
            return
        job, cancelled = answer.headers["Location"], dice.random() < 0.25
        with self._lock:
            self._live[job] = (seed, cancelled)
        if cancelled:
            self._sent("DELETE", job)
        else:
            with requests.get(f"{self.url}{job}/events", stream=True, timeout=TIMEOUT_S) as events:
                for _ in zip(range(dice.choice((1, 5, 1000))), events.iter_lines(), strict=False):
                    pass

    def _openai(self, dice: random.Random) -> None:
        self._sent("POST", "/v1/images/generations", json={"prompt": "a red apple", "n": dice.choice((1, 2))})

    def _compare_door(self, dice: random.Random) -> None:
        self._sent("POST", "/compare", json={"prompt": "a red apple", "seed": dice.choice(SEEDS), "speed": "fast"})

    def _lora(self, dice: random.Random) -> None:
        self._sent(dice.choice(("POST", "DELETE")), "/loras/soft")

    def _flush(self, dice: random.Random) -> None:
        self._sent("POST", "/flush_cache")

    def _read(self, dice: random.Random) -> None:
        self._sent("GET", dice.choice((*ASSETS, "/health", "/jobs", "/loras", "/get_model_info")))

    def _leave(self, dice: random.Random) -> None:
        self._sent("POST", "/generate", json=PICTURE | {"num_images": 4}, timeout=0.05 + dice.random() / 2)

    def _hostile(self, dice: random.Random) -> None:
        body = dice.choice(
            [*BODIES.values(), "{", "null", '{"prompt":"a","image_urls":["data:image/png;base64,eA=="]}']
        )
        answer = self._sent("POST", "/generate", data=body.encode(), headers={"Content-Type": "application/json"})
        if answer.ok:
            with self._lock:
                self.wrong.append("a hostile body was taken")

    # Beside them

    def _light(self) -> None:
        session = requests.Session()
        while not self.ended.wait(0.1):
            for path, taken in self.light_ms.items():
                self.up.wait(TIMEOUT_S)
                began = time.perf_counter()
                with suppress(requests.RequestException):
                    session.get(self.url + path, timeout=30)
                    if self.up.is_set():
                        taken.append(1000 * (time.perf_counter() - began))

    def _follow(self) -> None:
        while not self.ended.wait(0.5):
            if self.up.is_set():
                self._look_at_jobs()

    def _look_at_jobs(self) -> None:
        for job, (seed, cancelled) in [*self._live.items()]:
            with suppress(requests.RequestException):
                answer = self._sent("GET", job)
                if answer.status_code == 404:
                    if not cancelled:  # the cancelling of one that has ended removes it
                        self.lost.append(f"{job} is gone")
                elif not answer.ok or answer.json()["state"] in LIVE:
                    continue
                elif answer.json()["state"] == JobState.SUCCEEDED and not cancelled:
                    output = self._sent("GET", f"{job}/outputs/0")
                    if output.ok:
                        self._compare(seed, output.content)
                elif answer.json()["state"] != JobState.CANCELLED:
                    self.lost.append(f"{job}: {answer.json()['state']}")
                with self._lock:
                    self._live.pop(job, None)


DOORS: dict[Callable[[Traffic, random.Random], None], int] = {
    Traffic._generate: 5,
    Traffic._generate_file: 3,
    Traffic._job: 6,
    Traffic._openai: 3,
    Traffic._compare_door: 1,
    Traffic._lora: 1,
    Traffic._flush: 1,
    Traffic._read: 6,
    Traffic._leave: 2,
    Traffic._hostile: 2,
}
"""Weight of each door."""
