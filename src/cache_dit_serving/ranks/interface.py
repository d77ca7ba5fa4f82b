"""Network interface of the ranks' tensor exchange."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"


def bind_transports(address: str, *, always: bool) -> None:
    """Have gloo and NCCL listen on one interface. By default each chooses one itself, and not loopback.

    Args:
        address: an IP address of this machine, on the interface.
        always: override an interface that the environment already names.
    """
    if (name := interface_of(address)) is None:
        return
    for variable, value in {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}.items():
        if always or variable not in os.environ:
            os.environ[variable] = value


def interface_of(address: str) -> str | None:
    """Return the name of the interface that has an IP address; None for an address of another machine.

    Every address of 127.0.0.0/8 is the loopback interface's, which lists only one of them.
    """
    wanted = ipaddress.ip_address(address.partition("%")[0])
    for name, addresses in psutil.net_if_addrs().items():
        for each in addresses:
            if each.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            held = ipaddress.ip_address(each.address.partition("%")[0])
            if held == wanted or (held.is_loopback and wanted.is_loopback and held.version == wanted.version):
                return name
    return None


def warn_of_open_ports(*endpoints: str) -> None:
    """Log the ports that are to be closed to others, on a machine whose ranks exchange tensors with other machines.

    Args:
        endpoints: host:port of the listeners whose ports are known.
    """
    try:
        first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        chosen = f"one of {first} to {last}"
    except (OSError, ValueError):
        chosen = "one that the system chooses"
    ports = " and ".join((*endpoints, f"of each rank ({chosen})"))
    logger.warning(
        "ranks on several machines: ports %s must be closed to all but these machines; "
        "torch's exchange has no password: whoever reaches it can run code as the server",
        ports,
    )
