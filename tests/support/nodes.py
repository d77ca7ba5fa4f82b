"""Machines of a group: here other addresses of this one, each with an agent of its own."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from cache_dit_serving.config.settings import Settings
from cache_dit_serving.ranks import wire
from tests.support.forked import ROOT, ForkedProcess, environment, warm_process

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
def node(at: str, log: Path) -> Iterator[ForkedProcess]:
    """A machine that joins the group which meets there: `cache-dit-serving join`, forked from the warm process."""
    environ = environment() | {"OMP_NUM_THREADS": "1", wire.JOIN_TOKEN: SECRET}
    process = warm_process().fork(environ=environ, cwd=ROOT, log=log, command=["join", at], ranks=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(40)
