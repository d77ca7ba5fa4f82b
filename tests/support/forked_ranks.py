"""The process that forks a model's ranks, itself forked from one that has the imports: a start spares four seconds."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing import connection, forkserver
from typing import Any, NoReturn

PRELOAD = ["cache_dit_serving.ranks.warm"]
"""As in ranks/agent.py."""


def start_by(fork: Callable[[int, int], int]) -> None:
    """Have multiprocessing's fork server of this process run in one that `fork` makes.

    The server's own start, by CPython 3.11 and 3.12, does not name a process to fork from.

    Args:
        fork: takes the descriptors of the socket that the fork server listens at, and of a pipe that closes when it
            should end; returns the number of a child of this process that lives as long.
    """
    server: Any = forkserver._forkserver
    address = connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
    ends, alive = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        server._forkserver_pid = fork(listener.fileno(), ends)
    os.close(ends)
    server._forkserver_address, server._forkserver_alive_fd = address, alive


def fork_here(listener: int, ends: int) -> int:
    """Fork the fork server from this process, which runs no second thread."""
    if pid := os.fork():
        return pid
    serve(listener, ends)


def serve(listener: int, ends: int) -> NoReturn:
    """Become the fork server of the process that made these descriptors, until that one and its ranks have ended."""
    try:
        kept = sorted({0, 1, 2, listener, ends})
        for one, other in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(one + 1, other)
        forkserver.main(listener, ends, PRELOAD)
    except SystemExit:
        os._exit(0)
    except Exception:  # noqa: BLE001 - this is all that is left of it
        traceback.print_exc()
    os._exit(1)
