"""Machines of a group: here other addresses of this one, each with an agent of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cache_dit_serving.config.settings import Settings
from cache_dit_serving.ranks import wire
from tests.support.forked import ROOT, ForkedProcess, environment, warm_process
from tests.support.server import free_port

SECRET = "between nodes"
OTHER = "127.0.0.2"


def free_meeting() -> str:
    """A port of another loopback address that nobody holds."""
    return f"{OTHER}:{free_port(OTHER)}"


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
        process.wait(90)
