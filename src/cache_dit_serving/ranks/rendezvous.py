"""Rendezvous of torch's elastic agents: in memory on one machine, at an address of the server's machine on several.

torch's own rendezvous are not used. In torch 2.13, `c10d` and `static` open a TCPStore that listens on all interfaces
without a password, and `c10d` unpickles the value of a key that anyone may set there.
"""

from __future__ import annotations

import socket
from datetime import timedelta

from torch.distributed import HashStore, PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo

from cache_dit_serving.ranks import wire

BACKEND = "cache-dit-serving"
"""Name under which torch's agent finds this rendezvous."""


class KnownNodes(RendezvousHandler):  # type: ignore[misc]  # torch leaves it untyped
    """Rendezvous of machines whose number and order are known beforehand."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        """
        Args:
            parameters: `endpoint` is empty on one machine. `config` holds `node`, this machine's number; `timeout`, the
                maximum wait for the others in seconds; and on node 0 of several `meeting`, a socket that listens at
                the endpoint. The store takes the socket over.
        """
        self._parameters = parameters
        self._node: int = parameters.config["node"]
        self._nodes = parameters.max_nodes

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        """True on several machines, whose ranks use the agents' store."""
        return self._nodes > 1

    def next_rendezvous(self) -> RendezvousInfo:
        parameters = self._parameters
        if self._nodes == 1:
            return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo("127.0.0.1", 0))
        host, port = wire.host_and_port(parameters.endpoint)
        timeout = timedelta(seconds=parameters.config["timeout"])
        meeting: socket.socket | None = parameters.config.get("meeting")
        if meeting is None:
            store = TCPStore(host, port, self._nodes, False, timeout)
        else:  # without a given socket it would listen on all interfaces
            store = TCPStore(host, port, self._nodes, True, timeout, master_listen_fd=meeting.detach())
        found = RendezvousStoreInfo(host, port)
        return RendezvousInfo(PrefixStore(parameters.run_id, store), self._node, self._nodes, found)

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Do nothing, because an ended group has no further rendezvous."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._parameters.run_id

    def shutdown(self) -> bool:
        return True


rendezvous_handler_registry.register(BACKEND, KnownNodes)
