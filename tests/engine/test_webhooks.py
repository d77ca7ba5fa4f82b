"""The sender of webhooks, with real receivers."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy import insert, select

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
                await asyncio.wait_for(got.wait(), 50)  # far below what the others are waited for
            finally:
                sending.cancel()
                honest.close()
                await asyncio.wait([sending])

    asyncio.run(send())
    store.close()


@pytest.mark.parametrize(
    ("url", "hosts", "networks"),
    [
        ("http://127.0.0.1:{redirecting}/", ("127.0.0.1:{redirecting}", "127.0.0.1:{inner}"), ("127.0.0.0/8",)),
        ("http://localhost:{inner}/", ("localhost:{inner}",), ()),  # its name leads inside
        ("http://localhost:{inner}/", ("localhost:{redirecting}",), ("127.0.0.0/8", "::1/128")),  # the list has changed
        ("http://[::ffff:127.0.0.1]:{inner}/", ("127.0.0.1:{inner}",), ("127.0.0.0/8",)),
        ("http://127.0.0.1:{redirecting}@127.0.0.1:{inner}/", ("127.0.0.1:{inner}",), ("127.0.0.0/8",)),
    ],
    ids=["redirect", "inside", "unlisted", "mapped", "user"],
)
def test_no_message_reaches_what_the_operator_has_not_opened(
    url: str, hosts: tuple[str, ...], networks: tuple[str, ...], tmp_path: Path
) -> None:
    store = JobStore(f"sqlite:///{tmp_path}/jobs.sqlite3")
    reached: list[str] = []

    async def ask(what: Callable[[JobStore], T]) -> T:
        return await asyncio.to_thread(what, store)

    def attempts() -> int:
        with store.outbox._engine.begin() as connection:
            return connection.execute(select(WebhookRow.attempts)).scalar_one()

    async def send() -> None:
        ports: dict[str, int] = {}

        async def inner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            reached.append("inner")
            writer.close()

        async def redirecting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            location = f"http://127.0.0.1:{ports['inner']}/"
            writer.write(f"HTTP/1.1 307 Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())
            writer.close()

        servers = [await asyncio.start_server(answer, "127.0.0.1", 0) for answer in (inner, redirecting)]
        ports |= {
            name: server.sockets[0].getsockname()[1]
            for name, server in zip(("inner", "redirecting"), servers, strict=True)
        }
        row = {"id": "one", "job": "j", "url": url.format(**ports), "body": "{}", "attempts": 0}
        with store.outbox._engine.begin() as connection:
            connection.execute(insert(WebhookRow), [row | {"host": "h", "due": 0.0}])
        settings = WebhookSettings(
            hosts=tuple(host.format(**ports) for host in hosts), networks=networks, secret=SECRET, timeout_s=60
        )
        failed, sender = asyncio.Event(), Webhooks(settings, ask)
        again = store.outbox.again

        def noted(webhook: str, due: float) -> None:
            again(webhook, due)
            loop.call_soon_threadsafe(failed.set)

        loop = asyncio.get_running_loop()
        store.outbox.again = noted  # type: ignore[method-assign]
        sending = asyncio.create_task(sender.send_until(asyncio.Event()))
        try:
            await asyncio.wait_for(failed.wait(), 120)
        finally:
            sending.cancel()
            for server in servers:
                server.close()
            await asyncio.wait([sending])

    asyncio.run(send())
    assert attempts() == 1
    assert reached == []
    store.close()
