"""The supervisor's own decisions, in this process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from cache_dit_serving.config.settings import ServerSettings
from cache_dit_serving.supervisor import TRUSTED_PROXIES, trust_proxies


@pytest.mark.parametrize(
    ("client", "scheme"), [("10.1.2.3", "https"), ("192.0.2.7", "https"), ("127.0.0.1", "https"), ("10.9.0.1", "http")]
)
def test_uvicorn_takes_the_scheme_from_proxies_of_the_settings(
    client: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUSTED_PROXIES, "127.0.0.1")
    for _ in range(2):  # the supervisor, then its worker
        trust_proxies(ServerSettings(trusted_proxies=("10.1.0.0/16", "192.0.2.7")))
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["scheme"])

    trusted = uvicorn.Config(app).forwarded_allow_ips
    asked = {"type": "http", "scheme": "http", "client": (client, 1), "headers": [(b"x-forwarded-proto", b"https")]}
    asyncio.run(ProxyHeadersMiddleware(app, trusted)(asked, None, None))  # type: ignore[arg-type]
    assert seen == [scheme]
