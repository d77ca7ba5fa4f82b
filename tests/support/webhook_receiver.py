"""A receiver of webhooks on a port of its own."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai

from tests.support.server import options

SECRET = f"whsec_{base64.b64encode(bytes(range(32))).decode()}"


@dataclass
class Receiver:
    """A server that refuses the first so many messages, and keeps all."""

    port: int
    refused: int = 0
    got: list[tuple[dict[str, str], str]] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/told"

    def wait(self, count: int) -> list[tuple[dict[str, str], dict[str, Any]]]:
        """So many messages, each of which was signed."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.got) >= count, 180), self.got
        client = openai.OpenAI(api_key="none")
        for headers, body in self.got:
            client.webhooks.verify_signature(body, headers, secret=SECRET)
        return [(headers, json.loads(body)) for headers, body in self.got]

    @contextmanager
    def listening(self) -> Iterator[None]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                with receiver.arrived:
                    receiver.got.append((dict(self.headers), body))
                    receiver.arrived.notify_all()
                self.send_response(500 if len(receiver.got) <= receiver.refused else 204)
                self.end_headers()

            def log_message(self, *words: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield
        server.shutdown()
        server.server_close()

    @property
    def environ(self) -> dict[str, str]:
        """Settings of a server that sends to it."""
        return options(
            WEBHOOKS__HOSTS=[f"127.0.0.1:{self.port}"], WEBHOOKS__NETWORKS=["127.0.0.0/8"], WEBHOOKS__SECRET=SECRET
        )
