"""Download of images by URL, under the rules of :mod:`media.outgoing`. Each redirect is checked again."""

from __future__ import annotations

import asyncio

import httpx

from cache_dit_serving.config.settings import InputSettings
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.outgoing import Reach, Refused, addressed, client_for, reachable

MOST_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)


async def fetch(url: str, settings: InputSettings, param: str) -> bytes:
    """Download the file at an http or https URL, following up to `MOST_REDIRECTS` redirects.

    Raises:
        InvalidRequest: the URL is not allowed, or no file of at most `max_bytes` came within `fetch_s`.
    """
    try:
        async with asyncio.timeout(settings.fetch_s):
            return await _followed(url, settings)
    except TimeoutError:
        said = f"was not there after {settings.fetch_s:g} s"
    except Refused as refusal:
        said = str(refusal)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError):
        # The library's text would reveal whether a port is open.
        said = "could not be fetched"
    raise InvalidRequest(f"{param} {said}; send the picture itself, as base64 or an upload", param=param)


async def _followed(url: str, settings: InputSettings) -> bytes:
    reach = Reach(settings.url_hosts, settings.url_networks, "inputs.url_hosts", "inputs.url_networks")
    async with client_for(settings.fetch_s) as client:
        for _ in range(MOST_REDIRECTS + 1):
            target = reachable(url, reach)
            accepted = {"Accept": "image/*", "Accept-Encoding": "identity"}
            response = await client.send(await addressed(client, "GET", target, reach, headers=accepted), stream=True)
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
    """Read the body as sent. A compressed one is refused, because its unpacked size is not bounded.

    Raises:
        Refused: the body is compressed or larger than `max_bytes`.
    """
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
