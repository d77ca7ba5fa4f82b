"""A request's connection on its way in, which remembers whether the body has come to an end."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Message, Receive


class Incoming:
    """A request's `receive`."""

    def __init__(self, receive: Receive, headers: Headers) -> None:
        self._receive = receive
        self.headers = headers
        self.has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        self.complete = not self.has_body
        """True once the body has come to its end."""

    async def __call__(self) -> Message:
        message = await self._receive()
        self.complete = self.complete or message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message
