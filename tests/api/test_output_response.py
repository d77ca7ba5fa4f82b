"""Files of outputs as they leave."""

from __future__ import annotations

from pathlib import Path

import anyio
from starlette.types import Message

from cache_dit_serving.api.handlers import OutputResponse


def test_a_picture_leaves_in_a_few_parts(tmp_path: Path) -> None:
    content, sent = bytes(range(256)) * 8192, []
    (tmp_path / "picture.png").write_bytes(content)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            sent.append(message["body"])

    async def receive() -> Message:
        await anyio.sleep_forever()  # the client stays
        raise AssertionError

    scope = {"type": "http", "method": "GET", "headers": []}
    anyio.run(OutputResponse(tmp_path / "picture.png"), scope, receive, send)
    assert b"".join(sent) == content
    assert len(sent) <= 3
