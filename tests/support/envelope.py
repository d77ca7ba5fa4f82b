"""The outermost layer in this process, around an app that records the requests that reach it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from cache_dit_serving.api.access import Access
from cache_dit_serving.api.envelope import Envelope
from cache_dit_serving.api.request_state import RequestState, state_of
from cache_dit_serving.config.settings import Limits, ServerSettings
from cache_dit_serving.engine.caller import Caller

LOCAL = "http://localhost:3000"


@dataclass
class Behind:
    """An app that answers 200 and remembers its requests."""

    seen: list[tuple[str, bytes]] = field(default_factory=list)
    """Their paths and bodies."""
    states: list[RequestState] = field(default_factory=list)
    """What the layer has put beside each."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append((scope["path"], (await receive()).get("body", b"")))
        self.states.append(state_of(scope))
        await JSONResponse({})(scope, receive, send)

    @property
    def callers(self) -> list[Caller]:
        return [state.caller for state in self.states]


def around(behind: Behind, limits: dict[str, Any] | None = None, server: dict[str, Any] | None = None) -> Envelope:
    """The envelope around an app, with these settings of the two sections."""
    settings = ServerSettings(**server or {})
    return Envelope(behind, limits=Limits(**limits or {}), server=settings, access=Access(settings))


def ask(method: str, url: str, behind: Behind, **options: Any) -> httpx.Response:
    """The envelope's answer; `limits` and `server` have settings of those sections."""
    envelope = around(behind, options.pop("limits", None), options.pop("server", None))

    async def answer() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(envelope), base_url=LOCAL) as client:
            return await client.request(method, url, **options)

    return asyncio.run(answer())
