"""Machines of a group: here other addresses of this one, each with an agent of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cache_dit_serving.config.settings import Settings
from cache_dit_serving.ranks import wire
from tests.support.server import COMMAND, ROOT

SECRET = "between nodes"


def free_meeting() -> str:
    """Of another loopback address, a port that nobody listens at."""
    with socket.create_server(("127.0.0.2", 0)) as free:
        return "{}:{}".format(*free.getsockname())


def meeting(settings: Settings) -> str:
    assert settings.parallelism is not None
    assert settings.parallelism.rendezvous is not None
    return settings.parallelism.rendezvous


@contextlib.contextmanager
def node(settings: Settings, log: Path, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """A machine that joins."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [COMMAND, "join", meeting(settings)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1", wire.JOIN_TOKEN: SECRET} | environ,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(40)
