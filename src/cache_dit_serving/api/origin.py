"""Requests that a browser sends for a page of another site, and names under which this server does not answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from cache_dit_serving.errors import Forbidden, InvalidRequest

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing (RFC 9110, 9.2.1)."""
SINGLE_HEADERS = ("authorization", "content-length", "content-type", "host", "idempotency-key", "origin")
"""Headers that may stand once; of two, readers take different ones."""


def check_framing(headers: Headers) -> None:
    """Refuse a request whose end, host, caller or type two servers could read differently.

    Raises:
        InvalidRequest: Content-Length beside Transfer-Encoding (RFC 9112, 6.3), or a header twice that counts once.
    """
    if "content-length" in headers and "transfer-encoding" in headers:
        raise InvalidRequest("the request has both Content-Length and Transfer-Encoding; send one of them")
    for name in SINGLE_HEADERS:
        if len(headers.getlist(name)) > 1:
            raise InvalidRequest(f"the header {name.title()} stands twice; send it once")


def check_host(headers: Headers, allowed: Sequence[str]) -> None:
    """Refuse a request for a host that is not one of `allowed`; none allowed: every host is.

    A page elsewhere whose name is made to lead here (DNS rebinding) sends its own name.

    Raises:
        InvalidRequest: another host, or none.
    """
    host = _name(headers.get("host", ""))
    if allowed and not any(_is_of(host, pattern.lower()) for pattern in allowed):
        raise InvalidRequest("this server does not answer under the name in the header Host", code="invalid_host")


def check_site(method: str, headers: Headers, trusted: Sequence[str] = ()) -> None:
    """Refuse a change that a browser asks for in the name of another site's page.

    Args:
        trusted: origins whose pages may; `*` stands for all.

    The rule is that of Go's `http.CrossOriginProtection`: `Sec-Fetch-Site` where the browser sends it, else `Origin`
    against `Host`. Clients that are no browsers send neither.

    Raises:
        Forbidden: the page is of another origin.
    """
    if method in SAFE_METHODS:
        return
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site in ("same-origin", "none") or "*" in trusted or origin in trusted:
        return
    if site is None and (origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()):
        return
    raise Forbidden(
        "a page of another site may not ask for this; call the server from its own pages or from a program, or have "
        "its operator name the page's origin (server.cors_origins)",
        code="cross_site",
    )


def cors_options(origins: Sequence[str]) -> dict[str, Any]:
    """Return the options of Starlette's CORSMiddleware that let pages of these origins use every route.

    Cookies are not let through: keys are sent as headers, which a page has to know.
    """
    return {
        "allow_origins": list(origins),
        "allow_methods": ["GET", "POST", "PATCH", "DELETE"],
        "allow_headers": ["*"],
        "expose_headers": ["*"],
        "allow_private_network": True,
    }


def _name(host: str) -> str:
    """Return the name or address of a Host header, without its port and in lower case."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_of(host: str, pattern: str) -> bool:
    """Return whether a name is the pattern's; `*.` stands for every name below a domain."""
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern
