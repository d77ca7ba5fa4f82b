"""Servers and commands that are forked from one warm process of all test processes: ready in about a second."""

from __future__ import annotations

import atexit
import functools
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.warm_process import COMMAND, MESSAGE_BYTES

ROOT = Path(__file__).resolve().parents[2]
IMPORTS_S = 240
RUN_VARIABLE = "PYTEST_XDIST_TESTRUNUID"
RUN = os.environ.get(RUN_VARIABLE) or uuid.uuid4().hex
"""The run of tests, all of whose processes share the warm process."""
ADDRESS = f"\0warm-process-{RUN}"
"""Abstract socket of the warm process."""


def environment() -> dict[str, str]:
    """This process's environment without settings of a server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CACHE_DIT_SERVING")}


AT_FIRST = environment()
"""The environment before any test, that of the warm process: a test's folder for temporary files goes with the test."""


class ForkedProcess:
    """A forked server, with what tests use of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = threading.Event()

    def note_end(self, status: int) -> None:
        self.returncode = status
        self._ended.set()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired("a forked server", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def connected() -> socket.socket:
    """A connection to the warm process of this run, which the first test process starts."""
    while True:
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with suppress(ConnectionRefusedError):
            control.connect(ADDRESS)
            return control
        control.close()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            try:
                listener.bind(ADDRESS)
            except OSError:  # another test process has begun to start it
                time.sleep(0.01)
                continue
            listener.listen()
            start(listener)


def start(listener: socket.socket) -> None:
    """Start the warm process at a socket, as nobody's child. It ends once no test process is connected."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), AT_FIRST.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.support.warm_process", str(listener.fileno())],
        # torch is asked for GPUs as libraries are imported, and cannot use one in a fork after that.
        env={"OMP_NUM_THREADS": "1", **AT_FIRST, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        pass_fds=[listener.fileno()],
        check=True,
    )


class WarmProcess:
    """The process that forks them, as one test process knows it."""

    def __init__(self) -> None:
        self._control = connected()
        self.forked: list[int] = []
        """Processes that it has forked for this one, those that have ended too."""
        self.ended_cpu_s = 0.0
        """Seconds of CPU that those took which have ended."""
        self._asking = threading.Lock()
        self._forked: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._servers: dict[int, ForkedProcess] = {}
        threading.Thread(target=self._listen, daemon=True, name="forked-servers").start()
        atexit.register(self.close)

    def fork(
        self,
        *,
        environ: dict[str, str],
        cwd: Path,
        log: Path,
        port: int = 0,
        metrics: Path | None = None,
        workers: int = 1,
        command: list[str] | None = None,
        module: str = COMMAND,
        program: list[str] | None = None,
        errors: Path | None = None,
        ranks: bool = False,
    ) -> ForkedProcess:
        """Start a server that listens on a port of 127.0.0.1 when this returns, or a command of the project's.

        Args:
            workers: more than one of a server have a supervisor, which is the process that this returns.
            command: the words after `cache-dit-serving`, or after `python -m MODULE`; left out: a server.
            module: whose `main()` takes these words.
            program: those after `python -m` of `bentoml serve` or of the launcher, whose workers are forked, too.
            errors: file of its standard error; left out: the log, as of its standard output.
            ranks: it starts ranks, whose forking process is forked too.
        """
        asked = {"environ": environ, "cwd": str(cwd), "log": str(log), "command": command, "ranks": ranks}
        asked |= {"errors": str(errors or log), "module": module, "program": program}
        return self._servers[self._ask(asked | {"port": port, "metrics": str(metrics), "workers": workers})]

    def fork_ranks(self, listener: int, ends: int) -> int:
        """Fork the process that forks ranks; returns the number of a child, as :func:`forked_ranks.start_by` asks."""
        self._ask({}, [listener, ends])
        return self._child.pid

    @functools.cached_property
    def _child(self) -> subprocess.Popen[bytes]:
        """A child that ends with this process, and does nothing."""
        return subprocess.Popen(["cat"], stdin=subprocess.PIPE)

    def _ask(self, asked: dict[str, Any], fds: Sequence[int] = ()) -> int:
        """Have a process forked; returns its number."""
        with self._asking:
            socket.send_fds(self._control, [json.dumps(asked).encode()], fds)
            pid = self._forked.get(timeout=IMPORTS_S)
        if pid is None:
            raise RuntimeError("the warm process has ended")
        self.forked.append(pid)
        return pid

    def close(self) -> None:
        """Need it no more: it ends what it has forked for this process, and itself if it was the last."""
        with suppress(OSError):  # it has ended
            self._control.shutdown(socket.SHUT_RDWR)  # which the listening thread hears, too

    def _listen(self) -> None:
        while True:
            try:
                summary = self._control.recv(MESSAGE_BYTES)
            except OSError:
                summary = b""
            if not summary:
                self._forked.put(None)
                return
            match json.loads(summary):
                case {"forked": int(pid)}:
                    self._servers[pid] = ForkedProcess(pid)
                    self._forked.put(pid)
                case {"ended": int(pid), "status": int(status), "cpu_s": float(cpu_s)}:
                    self.ended_cpu_s += cpu_s
                    self._servers[pid].note_end(status)


@functools.cache
def warm_process() -> WarmProcess:
    """The one of this run."""
    return WarmProcess()
