"""The start and the end of a rank's process. Its log has one format before the libraries are imported."""

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
"""Start of the process's name, in its log and as `ps` and `top` have it; the rank's number follows."""


def run_rank(server: str, token: str) -> None:
    """Be the rank that the environment names, to its end.

    Args:
        server: address of the server, as :func:`wire.connect` takes it.
        token: the group's.
    """
    number = int(os.environ["RANK"])
    os.setsid()  # a signal to the server's process group is the server's to act on
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # torch sends it as the thread that started this process ends
    with contextlib.suppress(OSError):  # Linux alone has it
        Path("/proc/self/comm").write_text(f"{NAME}{number}")
    configure_logs("INFO", configured_format(), f"{NAME}{number}")
    quiet_libraries()
    from cache_dit_serving.runners.rank import fail, main

    try:
        main(number, server, token)
    except Exception:
        logger.critical("this process ends", exc_info=True)
        fail()
