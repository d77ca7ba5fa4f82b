"""HAProxy with the configuration of `deploy/`, in front of servers on ports of this machine."""

from __future__ import annotations

import csv
import io
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.server import ROOT, free_port
from tests.support.waiting import wait_until

CONFIGURATION = ROOT / "deploy" / "haproxy.cfg"
needs_haproxy = pytest.mark.skipif(shutil.which("haproxy") is None, reason="needs haproxy (Debian: haproxy)")


@dataclass
class Balancer:
    """A running HAProxy."""

    url: str
    admin: Path

    def states(self) -> dict[str, str]:
        """States of the servers by name: UP, DOWN, DRAIN ..., without the progress of a change."""
        told = self.command("show stat").removeprefix("# ")
        rows = [row for row in csv.DictReader(io.StringIO(told)) if row["svname"].startswith("server-")]
        return {row["svname"]: row["status"].split()[0] for row in rows}

    def wait_for(self, server: int, *states: str) -> None:
        """Wait until a server, numbered from 1, is in one of the states."""
        wait_until(lambda: self.states()[f"server-{server}"] in states, 180, self.states)

    def drain(self, server: int) -> None:
        """Give a server nothing new."""
        self.command(f"set server servers/server-{server} state drain")

    def take_back(self, server: int) -> None:
        """Give a server requests again, once it is ready."""
        self.command(f"set server servers/server-{server} state ready")

    def command(self, words: str) -> str:
        """The answer on the socket for operators."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self.admin))
            admin.sendall(f"{words}\n".encode())
            return b"".join(iter(lambda: admin.recv(65536), b"")).decode()


@contextmanager
def balancing(folder: Path, ports: Sequence[int]) -> Iterator[Balancer]:
    """A balancer of three servers; it starts whether they run or not."""
    port = free_port()
    admin = folder / "admin.sock"
    addresses = {f"SERVER_{number}": f"127.0.0.1:{each}" for number, each in enumerate(ports, 1)}
    environ = os.environ | addresses | {"LISTEN": f"127.0.0.1:{port}", "ADMIN_SOCKET": str(admin)}
    if os.geteuid() != 0:
        environ["RUN_AS"] = pwd.getpwuid(os.geteuid()).pw_name
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(["haproxy", "-db", "-f", CONFIGURATION], env=environ, stdout=log, stderr=log)
    try:
        wait_until(admin.exists, 60, (folder / "haproxy.log").read_text)
        yield Balancer(f"http://127.0.0.1:{port}", admin)
    finally:
        process.kill()
        process.wait()
