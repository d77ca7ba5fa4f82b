"""torch's elastic agent, which starts this machine's ranks. It runs in the server's process and in that of `join`.

Without GPUs, the ranks are forked from multiprocessing's fork server, which has imported the libraries. It starts with
the first group, serves all later ones, and ends when the process that started it and its ranks have ended.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket

import psutil

from cache_dit_serving.logs import claim_loggers
from cache_dit_serving.ranks import wire
from cache_dit_serving.ranks.entry import NAME, run_rank

POLL_S = 0.2
PATIENCE_S = 1800
"""Maximum wait for another machine's agent after its machine got its welcome, seconds."""
TRACKER = "ignore:resource_tracker"
"""Warning filter. When this process is killed, CPython 3.11's resource tracker prints a warning in plain text."""


def run_ranks(place: wire.Place, server: str, meeting: socket.socket | None = None) -> None:
    """Start this machine's ranks and wait until they end.

    Args:
        place: this machine's place in the group.
        server: address of the server for the ranks, as :func:`wire.connect` takes it.
        meeting: socket that listens at the place's endpoint; only on node 0 of several. It is closed at the end.

    Raises:
        ChildFailedError: a rank failed; all ranks have ended.
        SignalException: this process received a signal to end; all ranks have ended. Only in a main thread.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from cache_dit_serving.ranks.rendezvous import BACKEND

    claim_loggers()  # torch's loggers exist only after the import
    config = LaunchConfig(
        min_nodes=place.nodes,
        max_nodes=place.nodes,
        nproc_per_node=place.ranks,
        run_id=place.group,
        rdzv_backend=BACKEND,
        rdzv_endpoint=place.endpoint,
        rdzv_configs={"node": place.node, "timeout": PATIENCE_S, "meeting": meeting},
        # Otherwise the agent makes a folder for output files of the ranks and leaves it behind.
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        max_restarts=0,
        monitor_interval=POLL_S,
        start_method=start_method(),
    )
    filters = os.environ.get("PYTHONWARNINGS", "").split(",")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, dict.fromkeys([*filters, TRACKER])))
    multiprocessing.set_forkserver_preload(["cache_dit_serving.ranks.warm"])
    elastic_launch(config, run_rank)(server, place.token)


def start_method() -> str:
    """Return multiprocessing's start method for this machine's ranks.

    cache-dit 1.5.3 and torchao look for GPUs on import. After that, torch 2.13 refuses CUDA in a forked process
    ("Cannot re-initialize CUDA in forked subprocess").
    """
    import torch

    return "spawn" if torch.cuda.is_available() else "forkserver"


def ranks_of(pid: int) -> list[psutil.Process]:
    """Return the running ranks that a process started."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name().startswith(NAME):
                found.append(process)
    return found
