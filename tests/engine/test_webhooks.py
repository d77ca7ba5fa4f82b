"""The sender of webhooks, with real receivers."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy import insert

from cache_dit_serving.config.settings import WebhookSettings
from cache_dit_serving.engine.webhooks import Webhooks
from cache_dit_serving.jobs.store.store import JobStore
from cache_dit_serving.jobs.store.tables import WebhookRow

T = TypeVar("T")
SECRET = f"whsec_{base64.b64encode(bytes(32)).decode()}"


def test_a_receiver_that_never_answers_delays_no_other(tmp_path: Path) -> None:
    store = JobStore(f"sqlite:///{tmp_path}/jobs.sqlite3")
    got = asyncio.Event()

    async def ask(what: Callable[[JobStore], T]) -> T:
        return await asyncio.to_thread(what, store)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()
        got.set()

    async def send() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:  # it is connected to, and says nothing
            honest = await asyncio.start_server(answer, "127.0.0.1", 0)
            ports = {"127.0.0.1": silent.getsockname()[1], "localhost": honest.sockets[0].getsockname()[1]}
            rows = [
                {"id": f"{host}-{number}", "job": "j", "url": f"http://{host}:{port}/", "body": "{}", "attempts": 0}
                | {"host": host, "due": float(host == "localhost")}
                for host, port in ports.items()
                for number in range(40 if host == "127.0.0.1" else 1)
            ]
            with store.outbox._engine.begin() as connection:
                connection.execute(insert(WebhookRow), rows)
            settings = WebhookSettings(
                hosts=tuple(f"{host}:{port}" for host, port in ports.items()),
                networks=("127.0.0.0/8", "::1/128"),
                secret=SECRET,
                timeout_s=60,
            )
            closing = asyncio.Event()
            sending = asyncio.create_task(Webhooks(settings, ask).send_until(closing))
            try:
                await asyncio.wait_for(got.wait(), 20)  # far below what the others are waited for
            finally:
                sending.cancel()
                honest.close()
                await asyncio.wait([sending])

    asyncio.run(send())
    store.close()
