"""torch's elastic agent with the ranks of this machine: in the server's process, and in that of `join`.

Without GPUs the ranks are forked from one process that has imported the libraries, multiprocessing's fork server. It
starts with the first group, serves all later ones, and ends with the process that started it and its ranks.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket

import psutil

from cache_dit_serving.logs import claim_loggers
from cache_dit_serving.runners import wire
from cache_dit_serving.runners.entry import NAME, run_rank

POLL_S = 0.2
PATIENCE_S = 1800
"""For another machine's agent to come, once its machine was told to start its ranks."""
TRACKER = "ignore:resource_tracker"
"""Filter for the warning, in plain text, of CPython 3.11's resource tracker when this process was killed."""


def run_ranks(place: wire.Place, server: str, meeting: socket.socket | None = None) -> None:
    """Start the ranks of this machine, and watch them until they end.

    Args:
        place: what this machine is in the group.
        server: where the ranks find the server, as :func:`wire.connect` takes it.
        meeting: the socket that listens at the place's endpoint, on node 0 of several; closed at the end.

    Raises:
        ChildFailedError: one ended in failure; none is left.
        SignalException: this process was told to end; none is left. Only in a main thread.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from cache_dit_serving.runners.rendezvous import BACKEND

    claim_loggers()  # torch's, which the import has made
    config = LaunchConfig(
        min_nodes=place.nodes,
        max_nodes=place.nodes,
        nproc_per_node=place.ranks,
        run_id=place.group,
        rdzv_backend=BACKEND,
        rdzv_endpoint=place.endpoint,
        rdzv_configs={"node": place.node, "timeout": PATIENCE_S, "meeting": meeting},
        # Or the agent makes a folder for the ranks' output, which goes to the terminal, and leaves it behind.
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        max_restarts=0,
        monitor_interval=POLL_S,
        start_method=start_method(),
    )
    filters = os.environ.get("PYTHONWARNINGS", "").split(",")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, dict.fromkeys([*filters, TRACKER])))
    multiprocessing.set_forkserver_preload(["cache_dit_serving.runners.warm"])
    elastic_launch(config, run_rank)(server, place.token)


def start_method() -> str:
    """How multiprocessing starts the ranks of this machine.

    cache-dit 1.5.3 and torchao look for GPUs as they are imported. After that torch 2.13 refuses CUDA in a forked
    process ("Cannot re-initialize CUDA in forked subprocess").
    """
    import torch

    return "spawn" if torch.cuda.is_available() else "forkserver"


def ranks_of(pid: int) -> list[psutil.Process]:
    """The ranks that a process started and that still run."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name().startswith(NAME):
                found.append(process)
    return found
