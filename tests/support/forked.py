"""Servers and commands that are forked from one warm process of this test process: ready in about a second."""

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
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.warm_process import MESSAGE_BYTES

ROOT = Path(__file__).resolve().parents[2]
IMPORTS_S = 120


def environment() -> dict[str, str]:
    """This process's environment without settings of a server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CACHE_DIT_SERVING")}


class ForkedProcess:
    """A forked server, with what tests use of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.cpu_s = 0.0
        """Seconds of CPU that it took; known when it has ended."""
        self._ended = threading.Event()

    def note_end(self, status: int, cpu_s: float) -> None:
        self.returncode, self.cpu_s = status, cpu_s
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


class WarmProcess:
    """The process that forks them."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._folder = tempfile.TemporaryDirectory(prefix="metrics-")
        fd = str(theirs.fileno())
        path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.support.warm_process", fd, self._folder.name],
            # torch is asked for GPUs as libraries are imported, and cannot use one in a fork after that.
            env={"OMP_NUM_THREADS": "1", **environment(), "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self._asking = threading.Lock()
        self._forked: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._servers: dict[int, ForkedProcess] = {}
        self._early: dict[int, dict[str, Any]] = {}
        """What ended before this process knew of it."""
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
        ranks: bool = False,
    ) -> ForkedProcess:
        """Start a server that listens on a port of 127.0.0.1 when this returns, or a command of the project's.

        Args:
            workers: more than one of a server have a supervisor, which is the process that this returns.
            command: the words after `cache-dit-serving`; left out: a server.
            ranks: it starts ranks, whose forking process is forked too.
        """
        asked = {"environ": environ, "cwd": str(cwd), "log": str(log), "command": command, "ranks": ranks}
        return self._servers[self._ask(asked | {"port": port, "metrics": str(metrics), "workers": workers})]

    def fork_ranks(self, listener: int, ends: int) -> int:
        """Fork the process that forks ranks; returns this process's number, as :func:`forked_ranks.start_by` asks."""
        self._ask({}, [listener, ends])
        return self._process.pid

    def _ask(self, asked: dict[str, Any], fds: Sequence[int] = ()) -> int:
        """Have a process forked; returns its number."""
        with self._asking:
            socket.send_fds(self._control, [json.dumps(asked).encode()], fds)
            pid = self._forked.get(timeout=IMPORTS_S)
        if pid is None:
            raise RuntimeError(f"the warm process ended with {self._process.wait()}")
        return pid

    def close(self) -> None:
        """End it; servers that still run see that their parent is gone, and end too."""
        self._control.close()
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

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
                    if (early := self._early.pop(pid, None)) is not None:
                        self._servers[pid].note_end(early["status"], early["cpu_s"])
                    self._forked.put(pid)
                case {"ended": int(pid), "status": int(status), "cpu_s": float(cpu_s)}:
                    if pid in self._servers:
                        self._servers[pid].note_end(status, cpu_s)
                    else:
                        self._early[pid] = {"status": status, "cpu_s": cpu_s}


@functools.cache
def warm_process() -> WarmProcess:
    """The one of this test process."""
    return WarmProcess()
