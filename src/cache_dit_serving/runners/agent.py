"""torch's elastic agent with the ranks of this machine: in the server's process, and in that of `join`."""

from __future__ import annotations

import os
import sys

from cache_dit_serving.runners import wire

POLL_S = 0.2
PATIENCE_S = 1800
"""For another machine's agent to come, once its machine was told to start its ranks."""


def run_ranks(place: wire.Place, server: str) -> None:
    """Start the ranks of this machine, and watch them until they end.

    Args:
        place: what this machine is in the group.
        server: where the ranks find the server, as :func:`wire.connect` takes it.

    Raises:
        ChildFailedError: one ended in failure; none is left.
        SignalException: this process was told to end; none is left. Only in a main thread.
    """
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    alone = place.nodes == 1
    config = LaunchConfig(
        min_nodes=place.nodes,
        max_nodes=place.nodes,
        nproc_per_node=place.ranks,
        run_id=place.token,
        # Of torch's two, one finds a free port by itself, the other keeps to the order of the nodes: rank 0 is here.
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint=place.endpoint,
        rdzv_configs={"is_host": True} if alone else {"rank": place.node, "timeout": PATIENCE_S},
        max_restarts=0,
        monitor_interval=POLL_S,
    )
    os.environ |= {wire.SERVER: server, wire.TOKEN: place.token}
    elastic_launch(config, sys.executable)("-m", "cache_dit_serving.runners.rank")
