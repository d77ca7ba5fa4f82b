"""Clients that submit, follow, cancel and leave jobs while everything breaks that may."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import requests
from PIL import Image
from sqlalchemy import create_engine, text

from tests.support.jobs import PROMPT, ended, states
from tests.support.postgres import Postgres
from tests.support.server import Server, ready
from tests.support.waiting import wait_until

SEEDS, STEPS = range(3), (4, 8, 20)
FINAL = ("succeeded", "failed", "cancelled", "expired")
PATIENCE_S = 120.0
"""Of a client whose request is refused or cut off, before it counts as a failure."""

OLD = 20_000
OLD_JOBS = """
    WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :most)
    INSERT INTO jobs (id, digest, request, state, history, ended, step, steps, cached_steps, files, attempts, unwanted,
                      owned_until)
    SELECT 'old-' || CAST(n AS TEXT), '', '{}', 'cancelled', '[["cancelled", 1.0]]', 1.0, 0, 1, 0, '[]', 0, FALSE, 0.0
    FROM numbers
"""


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of that size, for as long as a test."""
    folder.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@dataclass
class Asked:
    """A job that was promised."""

    id: str
    seed: int
    steps: int
    cancelled: bool = False


@dataclass
class Storm:
    """A server with two workers, its clients, and what befalls them."""

    folder: Path
    outputs: Path
    environ: dict[str, str]
    jobs: int
    clients: int
    dice: random.Random
    begin: Callable[..., AbstractContextManager[Server]]
    """`serving` or `bentoml_serving`."""
    server: Server = field(init=False)
    promised: dict[str, Asked] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(init=False)
    _database: str = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _servers: ExitStack = field(default_factory=ExitStack)
    _starts: int = 0

    def __post_init__(self) -> None:
        self._numbers = iter(range(self.jobs))

    def start(self) -> None:
        """A server, in place of one before it."""
        self._starts += 1
        folder = self.folder / f"server-{self._starts}"
        self.server = self._servers.enter_context(self.begin(folder, environ=self.environ))
        self.server.wait_for(ready, PATIENCE_S)

    def close(self) -> None:
        self._servers.close()

    def logs(self) -> str:
        """Of all servers so far."""
        return "".join(file.read_text(errors="replace") for file in self.folder.glob("server-*/server.log"))

    def blow(self, faults: list[Callable[[], None]]) -> None:
        """Have the clients do all the jobs, and each fault happen in between."""
        threads = [threading.Thread(target=self._client, args=(number,)) for number in range(self.clients)]
        for thread in threads:
            thread.start()
        for number, fault in enumerate(faults, 1):
            while any(thread.is_alive() for thread in threads) and self._submitted < self.jobs * number / (
                len(faults) + 1
            ):
                time.sleep(0.05)
            fault()
        for thread in threads:
            thread.join(4 * PATIENCE_S)

    @property
    def _submitted(self) -> int:
        return self.counts["jobs"]

    # The faults

    def kill_a_worker(self) -> None:
        with contextlib.suppress(psutil.Error, IndexError):
            self.dice.choice(psutil.Process(self.server.process.pid).children()).kill()
            self._count("workers killed")

    def kill_all(self) -> None:
        """The server with all its processes; another one starts."""
        supervisor = psutil.Process(self.server.process.pid)
        processes = [supervisor, *supervisor.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, 10)
        self._count("servers killed")
        self.start()

    def fill_the_disk(self) -> None:
        """Until some jobs have failed by it, or for a while."""
        rest = self.outputs / "rest"
        with rest.open("wb") as file, contextlib.suppress(OSError):
            file.write(bytes(shutil.disk_usage(self.outputs).free))
            file.flush()
        time.sleep(2)
        rest.unlink()
        self._count("disk full")

    def lock_sqlite(self, seconds: float) -> None:
        other = sqlite3.connect(self.outputs / "jobs.sqlite3", isolation_level=None, timeout=30)
        other.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        other.execute("COMMIT")
        other.close()
        self._count("database locked")

    def cut_postgres(self, cluster: Postgres, seconds: float) -> None:
        cluster.stop()
        time.sleep(seconds)
        cluster.start()
        self._count("database cut")

    def lock_rows(self, url: str, seconds: float) -> None:
        """Of PostgreSQL: those of the jobs that run, as an operator's forgotten session does."""
        with psycopg.connect(url) as other:
            rows = other.execute("SELECT id FROM jobs WHERE state = 'running' FOR UPDATE").fetchall()
            time.sleep(seconds)
        self._count("sessions with locked rows" if rows else "sessions without")

    def bury(self, url: str) -> None:
        """Have many jobs in the database that ended long ago."""
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text(OLD_JOBS), {"most": OLD})
        engine.dispose()
        self._database = url
        self._count("old jobs buried")

    def _buried(self) -> int:
        """Old jobs that are still in the database."""
        engine = create_engine(self._database)
        with engine.connect() as connection:
            left = connection.execute(text("SELECT count(*) FROM jobs WHERE id LIKE 'old-%'")).scalar_one()
        engine.dispose()
        return int(left)

    # The clients

    def _client(self, number: int) -> None:
        dice = random.Random(number)
        while True:
            with self._lock:
                job = next(self._numbers, None)
            if job is None:
                return
            try:
                self._job(job, dice)
            except Exception as error:  # noqa: BLE001 - the test tells it
                with self._lock:
                    self.errors.append(f"job {job}: {error!r}")

    def _job(self, number: int, dice: random.Random) -> None:
        seed, steps = dice.choice(SEEDS), dice.choice(STEPS)
        body = {"prompt": PROMPT, "seed": seed, "num_inference_steps": steps}
        self._count("jobs")
        if dice.random() < 0.1:
            # Refused at once, whatever else happens.
            refused = self._sent(
                "post", "/jobs", json=body | {"image_urls": ["data:image/png;base64,bm90IGFuIGltYWdl"]}
            )
            assert refused.status_code == 400, refused.text
            self._count("invalid pictures")
            return
        if dice.random() < 0.1:
            with contextlib.suppress(requests.RequestException):
                requests.post(f"{self.server.url}/generate", json=body | {"num_images": 4}, timeout=dice.random() / 4)
            self._count("disconnected")
        accepted = self._sent("post", "/jobs", json=body, headers={"Idempotency-Key": f"job-{number}"})
        assert accepted.status_code == 202, accepted.text
        job = Asked(accepted.json()["id"], seed, steps)
        with self._lock:
            assert job.id not in self.promised
            self.promised[job.id] = job
        if dice.random() < 0.2:
            time.sleep(dice.random() / 2)
            job.cancelled = True
            cancelled = self._sent("delete", f"/jobs/{job.id}")
            # One that had ended is forgotten by it, and so is one whose first answer was lost.
            assert cancelled.status_code in (200, 404), cancelled.text
            self._count("cancelled")
        elif dice.random() < 0.5:
            events_of = f"{self.server.url}/jobs/{job.id}/events"
            with (
                contextlib.suppress(requests.RequestException),
                requests.get(events_of, stream=True, timeout=5) as events,
            ):
                for _ in zip(range(dice.choice((1, 3, 100))), events.iter_lines(), strict=False):
                    pass
            self._count("followed")

    def _sent(self, method: str, path: str, **options: Any) -> requests.Response:
        """The answer to a request that is sent until the server takes it."""
        end = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(requests.RequestException):
                answer = requests.request(method, self.server.url + path, timeout=30, **options)
                if answer.status_code not in (429, 503):
                    return answer
                self._count(f"answered {answer.status_code}")
            assert time.monotonic() < end, f"{method} {path} is not taken"
            time.sleep(0.1)

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    # After the storm

    def settle(self) -> dict[str, dict[str, Any]]:
        """Every job that was promised and is kept, once it has ended."""
        self.server.wait_for(ready, PATIENCE_S)
        answers = {}
        wait_until(lambda: self._buried() == 0, PATIENCE_S, lambda: f"{self._buried()} old jobs are left")
        for job in self.promised.values():
            if self.server.get(f"/jobs/{job.id}").status_code == 404:
                assert job.cancelled, f"{job} is lost"
                self.counts["forgotten"] += 1
                continue
            answers[job.id] = answer = ended(self.server, f"/jobs/{job.id}", PATIENCE_S)
            assert [state for state in states(answer) if state in FINAL] == [answer["state"]], answer
            self.counts[answer["state"]] += 1
            self.counts["began again"] += states(answer).count("running") > 1
        return answers

    def picture(self, path: str) -> bytes:
        """The pixels of an output."""
        content = self.server.get(path).content
        return Image.open(io.BytesIO(content)).convert("RGB").tobytes()

    def _page(self, after: str) -> Any:
        """A page of jobs; None while the database keeps the server waiting, which says so."""
        answer = self.server.get(f"/jobs?limit=100{after}")
        assert answer.status_code in (200, 503), answer.text
        return answer.json() if answer.status_code == 200 else None

    def listed(self) -> set[str]:
        """Ids of all jobs that the server has."""
        found: set[str] = set()
        after = ""
        while True:
            page = wait_until(lambda after=after: self._page(after), PATIENCE_S)  # type: ignore[misc]
            found |= {job["id"] for job in page["jobs"]}
            if not page.get("next"):
                return found
            after = f"&after={page['next']}"
