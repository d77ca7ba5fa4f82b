"""Real servers on real ports."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.config.variables import CONFIG_VARIABLE, MODELS_VARIABLE, OVERRIDE_PREFIX
from tests.support.forked import ForkedProcess, environment, warm_process

ROOT = Path(__file__).resolve().parents[2]
START_S = 180
"""Patience with a start, seconds: one takes 15 where nothing else runs, and minutes beside much else."""
ANSWER_S = 300
"""Patience with an answer, seconds."""
PORTS = range(12_000, 32_000)
"""Below those that the system gives to connections: one of them could hold a port before its server does."""
COMMAND = str(Path(sys.executable).with_name("cache-dit-serving"))
SCHEDULERS = "CACHE_DIT_SERVING__MODEL__SCHEDULERS"
QUICKER = {"CACHE_DIT_SERVING__SPEEDS__WARM_UP": "false", SCHEDULERS: "{}"}
"""A sixth of a start each. The time of the speeds here, and other schedulers, matter to a few tests alone."""
UNWARMED = {"CACHE_DIT_SERVING__SERVER__WARM_UP": "false"}
"""Without the pictures of a start: a third of it, for servers that are started again and again."""
WORKERS = "CACHE_DIT_SERVING__SERVER__WORKERS"
PARALLELISM = "CACHE_DIT_SERVING__PARALLELISM__"
AS_SERVED = {
    "CACHE_DIT_SERVING__SPEEDS__WARM_UP": "true",
    SCHEDULERS: json.dumps([*load_settings({}).model.schedulers]),
}
"""As `make serve` has it."""


def options(**settings: Any) -> dict[str, str]:
    """The environment of a server with these settings, named SECTION__KEY."""
    return {
        f"{OVERRIDE_PREFIX}{name}": value if isinstance(value, str) else json.dumps(value)
        for name, value in settings.items()
    }


@dataclass
class Started:
    """Servers that this process has started."""

    count: int = 0


STARTED = Started()


class _Patient(HTTPAdapter):
    """Gives an answer ANSWER_S seconds, unless a test says otherwise: one that never comes would end no run."""

    def send(self, *args: Any, **options: Any) -> requests.Response:
        if options.get("timeout") is None:
            options["timeout"] = ANSWER_S
        return super().send(*args, **options)


def session() -> requests.Session:
    """One that looks for no proxies in the environment, which takes a tenth of a request."""
    direct = requests.Session()
    direct.trust_env = False
    direct.mount("http://", _Patient())
    return direct


@dataclass
class Server:
    """A `bentoml serve` process and where to reach it."""

    process: subprocess.Popen[bytes] | ForkedProcess
    url: str
    log_file: Path
    outputs: Path
    session: requests.Session = field(default_factory=session)

    def generate(self, **fields: Any) -> requests.Response:
        return self.session.post(f"{self.url}/generate", json={"prompt": "a red apple on a blue background"} | fields)

    def post(self, path: str, **options: Any) -> requests.Response:
        return self.session.post(self.url + path, **options)

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.session.get(self.url + path, **options)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_for(self, condition: Callable[[Server], bool], timeout_s: float = START_S) -> None:
        """Wait until the server meets a condition; connection errors count as not yet."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            try:
                if condition(self):
                    return
            except requests.ConnectionError:
                pass
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log()}")
            time.sleep(0.05)
        raise AssertionError(f"not met within {timeout_s} s:\n{self.log()}")

    def wait_until_idle(self) -> None:
        """Wait until nothing runs or waits: what another test left is over."""
        self.wait_for(idle)


def idle(server: Server) -> bool:
    """Whether no generation runs or waits."""
    queue = server.get("/health").json()["queue"]
    return not queue["running"] and queue["waiting"] == 0


def wait_for_what_is_left(item: pytest.Item) -> None:
    """Wait until nothing runs on the servers that a test shares with those before it."""
    for shared in item.funcargs.values() if isinstance(item, pytest.Function) else ():
        if isinstance(shared, Server):
            shared.wait_until_idle()


@contextmanager
def serving(
    folder: Path,
    *,
    cwd: Path = ROOT,
    environ: dict[str, str] | None = None,
    port: int | None = None,
    **variables: str,
) -> Iterator[Server]:
    """A server with these variables, ended by SIGTERM; ready or not when it is yielded.

    It is forked from a warm process: the worker of `bentoml serve` without its supervisor, or several with one of the
    tests' own. `port` is that of a server before it; left out: a free one.
    """
    started = _starting(folder, environ, variables, port)
    metrics = folder / "shared" / "metrics"
    metrics.mkdir(parents=True, exist_ok=True)
    process = warm_process().fork(
        port=started.port,
        environ=started.environ,
        cwd=cwd,
        log=started.log_file,
        metrics=metrics,
        workers=int(started.environ.get(WORKERS, "1")),
        ranks=any(name.startswith(PARALLELISM) for name in started.environ),
    )
    yield from _ending(started.server(process))


BENTOML = ["bentoml", "serve", "service:CacheDiTServing", "--host", "127.0.0.1"]


@contextmanager
def bentoml_serving(
    folder: Path,
    command: list[str] | None = None,
    *,
    cwd: Path = ROOT,
    environ: dict[str, str] | None = None,
    **variables: str,
) -> Iterator[Server]:
    """`bentoml serve` (or `command`), as :func:`serving`: for what its imports and installed commands do."""
    started = _starting(folder, environ, variables)
    words = command or [sys.executable, "-m", *BENTOML]
    with started.log_file.open("wb") as log:
        process = subprocess.Popen(
            [*words, "--port", str(started.port)],
            cwd=cwd,
            env=started.environ,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    yield from _ending(started.server(process))


@contextmanager
def supervised(
    folder: Path, program: list[str] | None = None, *, environ: dict[str, str] | None = None, **variables: str
) -> Iterator[Server]:
    """BentoML's supervisor and its workers, all of them forked: for what it does to them, ports and signals.

    `program` is another one of the words after `python -m`: that of the launcher.
    """
    started = _starting(folder, environ, variables)
    process = warm_process().fork(
        program=[*(program or BENTOML), "--port", str(started.port)],
        environ=started.environ,
        cwd=ROOT,
        log=started.log_file,
    )
    yield from _ending(started.server(process))


@dataclass
class _Starting:
    """What both kinds of servers are started with."""

    port: int
    environ: dict[str, str]
    log_file: Path
    outputs: Path

    def server(self, process: subprocess.Popen[bytes] | ForkedProcess) -> Server:
        return Server(process, f"http://127.0.0.1:{self.port}", self.log_file, self.outputs)


def _starting(
    folder: Path, environ: dict[str, str] | None, variables: dict[str, str], port: int | None = None
) -> _Starting:
    STARTED.count += 1
    folder.mkdir(parents=True, exist_ok=True)
    outputs, log_file = folder / "outputs", folder / "server.log"
    given = {**(environ or {}), **variables}
    complete = {
        **environment(),
        "BENTOML_DO_NOT_TRACK": "True",
        # Nothing of the tests lies in the user's home.
        "BENTOML_HOME": str(folder / "bentoml"),
        "CACHE_DIT_SERVING__OUTPUTS__ROOT": str(outputs),
        **({} if _lists_models(given) else QUICKER),
        **given,
    }
    log_file.write_bytes(b"")
    return _Starting(port or free_port(), complete, log_file, outputs)


def _lists_models(variables: dict[str, str]) -> bool:
    """Whether these variables give a list of models, beside which none may set a section of a model."""
    file = Path(variables.get(CONFIG_VARIABLE, ""))
    return MODELS_VARIABLE in variables or (file.is_file() and b"\nmodels:" in b"\n" + file.read_bytes())


def _ending(running: Server) -> Iterator[Server]:
    try:
        yield running
    finally:
        running.session.close()
        running.process.send_signal(signal.SIGTERM)
        try:
            running.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(running.process.pid, signal.SIGKILL)
            running.process.wait()


def ready(server: Server) -> bool:
    return server.get("/readyz").status_code == 200


def ready_workers(server: Server) -> int:
    """The number of them, by the log: those that were killed do not count."""
    return server.log().count("is ready on") - server.log().count("was ended by SIGKILL")


def free_port(host: str = "127.0.0.1") -> int:
    """A port of a loopback address that nobody holds."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((host, port))
            return port
