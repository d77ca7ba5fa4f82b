"""The traffic of a soak: clients at the doors, at a multiple of what the server can draw, and what it promises them."""

from __future__ import annotations

import hashlib
import io
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import requests
from PIL import Image

from cache_dit_serving.schemas.jobs import JobState

Twin = tuple[str, int]
"""Kind of a request, and its seed."""
CLIENTS = 24
TIMEOUT_S = 120.0
LIVE = (JobState.QUEUED, JobState.RUNNING)


def pixels_of(file: bytes) -> str:
    """Return a hash of the pixels of a picture's file."""
    picture = Image.open(io.BytesIO(file))
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()


@dataclass
class Traffic:
    """Clients that share one clock: a request every `every_s`, each through a door of chance."""

    url: str
    every_s: float
    twins: Mapping[Twin, str]
    """Hash of the undisturbed picture of each kind and seed."""
    doors: Mapping[Callable[[Traffic, random.Random], None], int]
    """Weight of each door."""
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Statuses and pictures that are promised not to be."""
    lost: list[str] = field(default_factory=list)
    compared: int = 0
    light_ms: dict[str, list[float]] = field(default_factory=lambda: {"/livez": [], "/capabilities": []})
    up: threading.Event = field(default_factory=threading.Event)
    """Cleared while the server is killed and starts again: no request is sent, and the light routes are not timed."""
    ended: threading.Event = field(default_factory=threading.Event)
    _live: dict[str, tuple[Twin, bool]] = field(default_factory=dict)
    """Twin of each job that was promised and has not been seen to end, and whether it was cancelled."""
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
        doors, weights = [*self.doors], [*self.doors.values()]
        while not self.ended.is_set():
            with self._lock:
                at = self._next = max(self._next + self.every_s, time.monotonic() - 1)
            self.ended.wait(max(0.0, at - time.monotonic()))
            self.up.wait(TIMEOUT_S)
            door = dice.choices(doors, weights)[0]
            self._count(door.__name__)
            with suppress(requests.RequestException):
                door(self, dice)

    def sent(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send a request and judge its status: no 5xx is allowed but a 503 with Retry-After."""
        answer = requests.request(method, self.url + path, **{"timeout": TIMEOUT_S} | options)
        self._count(f"status {answer.status_code}")
        if answer.status_code >= 500 and not (answer.status_code == 503 and "Retry-After" in answer.headers):
            self.accuse(f"{method} {path}: {answer.status_code}")
        return answer

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def accuse(self, what: str) -> None:
        """Take note of something that is promised not to be."""
        with self._lock:
            self.wrong.append(what)

    def compare(self, twin: Twin, file: bytes) -> None:
        """Hold a picture to its twin."""
        with self._lock:
            self.compared += 1
        if pixels_of(file) != self.twins[twin]:
            self.accuse(f"a picture of {twin} is not its twin")

    def promise(self, job: str, twin: Twin, *, cancelled: bool) -> None:
        """Follow a job to its end."""
        with self._lock:
            self._live[job] = (twin, cancelled)

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
        for job, (twin, cancelled) in [*self._live.items()]:
            with suppress(requests.RequestException):
                answer = self.sent("GET", job)
                if answer.status_code == 404:
                    if not cancelled:  # the cancelling of one that has ended removes it
                        self.lost.append(f"{job} is gone")
                elif not answer.ok or answer.json()["state"] in LIVE:
                    continue
                elif answer.json()["state"] == JobState.SUCCEEDED and not cancelled:
                    output = self.sent("GET", f"{job}/outputs/0")
                    if output.ok:
                        self.compare(twin, output.content)
                elif answer.json()["state"] != JobState.CANCELLED:
                    self.lost.append(f"{job}: {answer.json()['state']}")
                with self._lock:
                    self._live.pop(job, None)
