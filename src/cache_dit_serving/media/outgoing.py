"""Outgoing connections to URLs that callers name, guarded against server-side request forgery.

A caller could name a URL that only the server reaches: a metadata service, a port of its own, a neighbour. Therefore
the host must be on the operator's list. Its name is resolved once. Every address it resolves to must be public, or in
a network that the operator allows. The connection goes to the first of these addresses.
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
"""Maximum length of a URL, characters."""
PORTS = {"http": 80, "https": 443}
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""The part of IPv6 that IANA gives to public hosts. `ipaddress` of Python 3.11 calls more public: IPv4-compatible,
SIIT's and NAT64's local prefixes, which embed addresses of the machine, and site-local ones."""
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 prefix that embeds IPv4 addresses (RFC 6052). `ipaddress` calls all of it public; the inner one is checked."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Refused(Exception):
    """Refusal of a URL. Its text goes to the caller and must not reveal anything about the internal network."""


@dataclass(frozen=True)
class Reach:
    """Hosts and networks that the server may connect to for its callers."""

    hosts: tuple[str, ...]
    networks: tuple[str, ...]
    """Networks that the hosts may lie in although they are not public, in CIDR notation."""
    hosts_setting: str
    networks_setting: str


def client_for(timeout_s: float) -> httpx.AsyncClient:
    """Return a client that ignores proxies and credentials of the environment and follows no redirects."""
    return httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=timeout_s)


def reachable(url: str, reach: Reach) -> httpx.URL:
    """Parse a URL and check its host against the operator's list. The name is not resolved here.

    Raises:
        Refused: the URL is too long, not http(s), holds a user name, or its host is not listed.
        httpx.InvalidURL: it is not a URL.
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
    """Resolve the host and build a request to its first address. The name is not resolved again on connecting.

    Raises:
        Refused: the name does not resolve, or one of its addresses is neither public nor in an allowed network.
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
    """Return whether a host is listed. An entry is a name or `*.` and a domain, with or without `:port`.

    Args:
        usual_port: the port is the scheme's default, which an entry without a port allows.
    """
    host = host.lower().rstrip(".")
    for entry in listed:
        name, _, its_port = entry.lower().partition(":")
        if not (usual_port if not its_port else its_port == str(port)):
            continue
        if host == name or (name.startswith("*.") and host.endswith(name[1:])):
            return True
    return False


def is_open(address: Address, networks: Iterable[str]) -> bool:
    """Return whether an address is public or in one of the networks. An embedded IPv4 address decides for IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inner is None and address in _TRANSLATED:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_open(inner, networks)
    if any(address in ipaddress.ip_network(network) for network in networks):
        return True
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    return address.is_global and not address.is_multicast
