"""Pictures by address: from hosts that the operator names, at addresses that lead nowhere inside.

A server that opens addresses for its callers can be made to open those that only it reaches: metadata services, its own
ports, its neighbours (server-side request forgery). So the host must be on the operator's list, its name is resolved
once, every address that it resolves to must be a public one, and the connection goes to that address. Each redirect is
checked anew.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable

import httpx

from cache_dit_serving.config.settings import InputSettings
from cache_dit_serving.errors import InvalidRequest

MOST_REDIRECTS = 3
MOST_CHARACTERS = 2048
"""Of an address."""
PORTS = {"http": 80, "https": 443}
REDIRECTS = (301, 302, 303, 307, 308)
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 for IPv4 behind a translator (RFC 6052), public to look at whatever it holds."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Refused(Exception):
    """Why an address is not opened; for the caller, who must not learn from it what lies inside."""


async def fetch(url: str, settings: InputSettings, param: str) -> bytes:
    """The file behind an http or https address.

    Raises:
        InvalidRequest: naming `param`: the address is not one this server opens, or no picture came from it in time.
    """
    try:
        async with asyncio.timeout(settings.fetch_s):
            return await _followed(url, settings)
    except TimeoutError:
        said = f"was not there after {settings.fetch_s:g} s"
    except Refused as refusal:
        said = str(refusal)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError):
        # The library's text would tell whether a port is open.
        said = "could not be fetched"
    raise InvalidRequest(f"{param} {said}; send the picture itself, as base64 or an upload", param=param)


async def _followed(url: str, settings: InputSettings) -> bytes:
    # Neither proxies nor passwords of the environment.
    async with httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=settings.fetch_s) as client:
        for _ in range(MOST_REDIRECTS + 1):
            if len(url) > MOST_CHARACTERS:
                raise Refused(f"is an address of more than {MOST_CHARACTERS:,} characters")
            target = httpx.URL(url)
            address = await _checked_address(target, settings)
            request = client.build_request(
                "GET",
                target.copy_with(host=str(address), fragment=None),
                headers={"Host": target.netloc.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity"},
                extensions={"sni_hostname": target.raw_host.decode("ascii")},
            )
            response = await client.send(request, stream=True)
            try:
                if response.status_code in REDIRECTS and "location" in response.headers:
                    url = str(target.join(response.headers["location"]))
                    continue
                if response.status_code != 200:
                    raise Refused(f"answered {response.status_code}")
                return await _read(response, settings.max_bytes)
            finally:
                await response.aclose()
    raise Refused(f"leads through more than {MOST_REDIRECTS} redirects")


async def _read(response: httpx.Response, max_bytes: int) -> bytes:
    """The body as it is sent: none that unpacks to more."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise Refused("came compressed")
    parts: list[bytes] = []
    received = 0
    async for part in response.aiter_raw():
        received += len(part)
        if received > max_bytes:
            raise Refused(f"is a file of more than {max_bytes:,} bytes")
        parts.append(part)
    return b"".join(parts)


async def _checked_address(target: httpx.URL, settings: InputSettings) -> Address:
    """The address to dial.

    Raises:
        Refused: the host is not on the list, or any of its addresses is not public.
    """
    if target.scheme not in PORTS:
        raise Refused("is not an http or https address")
    if target.userinfo:
        raise Refused("holds a user's name")
    port = target.port or PORTS[target.scheme]
    if not is_listed(target.host, port, port == PORTS[target.scheme], settings.url_hosts):
        raise Refused("is on a host that this server does not open (inputs.url_hosts)")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(target.host, port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        raise Refused("is on a host that is not found") from None
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not addresses or not all(is_open(address, settings.url_networks) for address in addresses):
        raise Refused("is on a host with an address that is not public (inputs.url_networks)")
    return addresses[0]


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
