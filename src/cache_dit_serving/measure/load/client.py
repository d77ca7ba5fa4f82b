"""HTTP client of a benchmark: one connection for each request in flight, bounded answers, errors as classes."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import re
import socket
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from cache_dit_serving.errors import ConfigError
from cache_dit_serving.measure.load.outcome import Failed

MAX_ANSWER_BYTES = 1 << 30
"""Length of an answer at which the client gives up."""
MOST_MESSAGE = 200
"""Length to which a server's error text is cut, characters."""

_SPARE = 4
"""Connections for requests that nothing waits for."""
_CLOSING_S = 10
"""Seconds for those that are left at the end."""


class Answer(NamedTuple):
    """Answer with a status below 400, read to its end."""

    headers: httpx.Headers
    content: bytes

    def json(self) -> dict[str, Any]:
        """Return the JSON object of the answer.

        Raises:
            Failed: it is none.
        """
        try:
            value = json.loads(self.content)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise Failed("invalid answer", "the answer is not a JSON object")
        return value


class Client:
    """Client of one server. It follows no redirect and uses no proxy: a key goes to that server alone."""

    def __init__(self, url: str, *, key: str | None, in_flight: int, timeout_s: float) -> None:
        """
        Args:
            in_flight: connections at most.
            timeout_s: seconds of a request, its answer included.
        """
        self.url = url
        self._timeout_s = timeout_s
        self._later: set[asyncio.Task[None]] = set()
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=None,
            limits=httpx.Limits(max_connections=in_flight + _SPARE, max_keepalive_connections=in_flight + _SPARE),
            trust_env=False,
            follow_redirects=False,
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._later:
            await asyncio.wait(self._later, timeout=_CLOSING_S)
        await self._http.aclose()

    def later(self, method: str, path: str) -> None:
        """Send a request that nothing waits for, and whose failure does not matter."""

        async def sent() -> None:
            with contextlib.suppress(Failed):
                await self.ask(method, path)

        task = asyncio.create_task(sent())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, accept: str = "application/json"
    ) -> Answer:
        """Send a request and read its whole answer.

        Raises:
            Failed: the server does not answer in time, or with a status of 300 or more.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._asked(method, path, body, accept)
        except TimeoutError:
            raise Failed("timeout", f"no answer within {self._timeout_s:g} s") from None
        except httpx.ConnectError:
            raise Failed("no connection") from None
        except (httpx.HTTPError, httpx.InvalidURL):
            raise Failed("connection lost") from None

    async def _asked(self, method: str, path: str, body: dict[str, Any] | None, accept: str) -> Answer:
        content = None if body is None else json.dumps(body).encode()
        headers = {"Accept": accept} | ({"Content-Type": "application/json"} if body is not None else {})
        async with self._http.stream(method, path, content=content, headers=headers) as response:
            read = bytearray()
            async for chunk in response.aiter_bytes():
                read += chunk
                if len(read) > MAX_ANSWER_BYTES:
                    raise Failed("invalid answer", f"the answer is longer than {MAX_ANSWER_BYTES:,} bytes")
            if response.status_code >= 300:
                raise failure_of(response.status_code, response.headers, bytes(read))
            return Answer(response.headers, bytes(read))


def failure_of(status: int, headers: httpx.Headers, content: bytes) -> Failed:
    """Return the failure of an answer: its status, and the code of an error in this server's or OpenAI's shape."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):  # an error page of a proxy
        value = None
    error: object = value.get("error", value.get("detail")) if isinstance(value, dict) else None
    code, message = (error.get("code"), error.get("message")) if isinstance(error, dict) else (None, error)
    named = f"{status} {code}" if isinstance(code, str) and re.fullmatch(r"[\w.-]{1,40}", code) else str(status)
    return Failed(named, plain(message) if isinstance(message, str) else "", retry_after_s(headers.get("Retry-After")))


def retry_after_s(value: str | None) -> float | None:
    """Return the seconds of a `Retry-After` header, which has them or a date; None if there is none."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value.strip()):
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def plain(text: str) -> str:
    """Return a stranger's text in one line of printable characters, cut to :data:`MOST_MESSAGE`."""
    line = "".join(char if char.isprintable() else " " for char in text[: MOST_MESSAGE * 2])
    return line if len(line) <= MOST_MESSAGE else line[:MOST_MESSAGE] + "..."


def checked_url(url: str, *, remote: bool) -> str:
    """Return the server's base URL, without a slash or `/v1` at its end.

    Raises:
        ConfigError: it is no URL of HTTP, holds a password, or leads to another machine without `remote`.
    """
    url = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError("URL: is no address, such as http://localhost:3000") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError("URL: is no address of HTTP, such as http://localhost:3000")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError("URL: takes no user, query or fragment; send a key by --api-key")
    if not remote and not _is_loopback(host, port or 80):
        raise ConfigError(
            f"URL: {plain(host)} is another machine, and a benchmark is load on it; add --yes-remote if you may load it"
        )
    return url.rstrip("/").removesuffix("/v1")


def _is_loopback(host: str, port: int) -> bool:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"URL: the name {plain(host)} has no address") from error
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def now() -> float:
    """Return the monotonic time that every measurement uses, seconds."""
    return time.perf_counter()
