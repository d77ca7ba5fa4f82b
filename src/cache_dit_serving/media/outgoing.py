"""Connections to addresses that callers name: to hosts that the operator lists, at addresses that lead nowhere inside.

A server that opens addresses for its callers can be made to open those that only it reaches: metadata services, its own
ports, its neighbours (server-side request forgery). So the host must be on the operator's list, its name is resolved
once, every address that it resolves to must be a public one, and the connection goes to that address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import httpx

MOST_CHARACTERS = 2048
"""Of an address."""
PORTS = {"http": 80, "https": 443}
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 for IPv4 behind a translator (RFC 6052), public to look at whatever it holds."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Refused(Exception):
    """Why an address is not opened; for the caller, who must not learn from it what lies inside."""


@dataclass(frozen=True)
class Reach:
    """Where the server may connect to for its callers."""

    hosts: tuple[str, ...]
    networks: tuple[str, ...]
    """Those that the hosts may lie in although they are not public."""
    hosts_setting: str
    networks_setting: str


def client_for(timeout_s: float) -> httpx.AsyncClient:
    """With neither proxies nor passwords of the environment, and without following redirects."""
    return httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=timeout_s)


def reachable(url: str, reach: Reach) -> httpx.URL:
    """An address whose host is on the operator's list; it was not looked up.

    Raises:
        Refused: it is none.
        httpx.InvalidURL: it is no address.
    """
    if len(url) > MOST_CHARACTERS:
        raise Refused(f"is an address of more than {MOST_CHARACTERS:,} characters")
    target = httpx.URL(url)
    if target.scheme not in PORTS:
        raise Refused("is not an http or https address")
    if target.userinfo:
        raise Refused("holds a user's name")
    port = target.port or PORTS[target.scheme]
    if not is_listed(target.host, port, port == PORTS[target.scheme], reach.hosts):
        raise Refused(f"is on a host that this server does not open ({reach.hosts_setting})")
    return target


async def addressed(
    client: httpx.AsyncClient, method: str, target: httpx.URL, reach: Reach, **options: Any
) -> httpx.Request:
    """A request to the address that a host has now, so that it cannot have another one by the time it is dialled.

    Raises:
        Refused: it has none, or any of its addresses is not public.
    """
    port = target.port or PORTS[target.scheme]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(target.host, port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        raise Refused("is on a host that is not found") from None
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not addresses or not all(is_open(address, reach.networks) for address in addresses):
        raise Refused(f"is on a host with an address that is not public ({reach.networks_setting})")
    headers = {"Host": target.netloc.decode("ascii"), **options.pop("headers", {})}
    return client.build_request(
        method,
        target.copy_with(host=str(addresses[0]), fragment=None),
        headers=headers,
        extensions={"sni_hostname": target.raw_host.decode("ascii")},
        **options,
    )


def is_listed(host: str, port: int, usual_port: bool, listed: Iterable[str]) -> bool:
    """Whether a host is on the operator's list: by its name, `*.` and the end of it, or either with a port."""
    host = host.lower().rstrip(".")
    for entry in listed:
        name, _, its_port = entry.lower().partition(":")
        if not (usual_port if not its_port else its_port == str(port)):
            continue
        if host == name or (name.startswith("*.") and host.endswith(name[1:])):
            return True
    return False


def is_open(address: Address, networks: Iterable[str]) -> bool:
    """Whether an address may be dialled: a public one, or one of the operator's networks."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inner is None and address in _TRANSLATED:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_open(inner, networks)
    if any(address in ipaddress.ip_network(network) for network in networks):
        return True
    return address.is_global and not address.is_multicast
