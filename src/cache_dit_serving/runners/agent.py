"""torch's elastic agent with the ranks of this machine: in the server's process, and in that of `join`."""

from __future__ import annotations

import os
import socket
import sys

from cache_dit_serving.logs import claim_loggers
from cache_dit_serving.runners import wire

POLL_S = 0.2
PATIENCE_S = 1800
"""For another machine's agent to come, once its machine was told to start its ranks."""


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
    )
    os.environ |= {wire.SERVER: server, wire.TOKEN: place.token}
    elastic_launch(config, sys.executable)("-m", "cache_dit_serving.runners")
