"""Entry point of a rank's process. It configures the log before it imports the libraries."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from pathlib import Path

from cache_dit_serving.logs import configure_logs, configured_format
from cache_dit_serving.pipeline.environment import quiet_libraries

logger = logging.getLogger(__name__)

NAME = "rank-"
"""Prefix of the process's name in the log, `ps` and `top`. The rank's number follows."""


def run_rank(server: str, token: str) -> None:
    """Run the rank whose number is in the environment variable RANK, until it ends.

    Args:
        server: address of the server, as :func:`wire.connect` takes it.
        token: secret of the group.
    """
    number = int(os.environ["RANK"])
    os.setsid()  # only the server handles signals to its process group
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # torch sends it when the thread that started this process ends
    with contextlib.suppress(OSError):  # only Linux has it
        Path("/proc/self/comm").write_text(f"{NAME}{number}")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which the process that forks the ranks ignores
    configure_logs("INFO", configured_format(), f"{NAME}{number}")
    quiet_libraries()
    from cache_dit_serving.ranks.rank import fail, main

    try:
        main(number, server, token)
    except Exception:
        logger.critical("this process ends", exc_info=True)
        fail()
