"""An operator's safety check: an HTTP server that decides by words of the prompt, and notes what it was sent.

It takes the webhooks of jobs too.
"""

from __future__ import annotations

import gzip
import json
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "a key of the check"
REASON = "not drawn\nhere"


class SafetyServer:
    """Its address, and the bodies that came."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}/check"
        self.webhook_url = f"http://127.0.0.1:{port}/told"
        self.told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        """Messages that came to the webhook."""
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.redirected = 0

    def of(self, subject: str) -> list[dict[str, Any]]:
        return [body for body in self.bodies if body["subject"] == subject]

    def answer(self, body: dict[str, Any]) -> tuple[int, bytes]:
        """Return status and body by the first word of the prompt."""
        word, prompt = body["texts"]["prompt"].split()[0], body["subject"] == "prompt"
        match word:
            case "refuse-prompt" if prompt:
                return 200, _said("refuse")
            case "refuse-output" if not prompt:
                return 200, _said("refuse")
            case "refuse-second" if not prompt and body["index"] == 1:
                return 200, _said("refuse")
            case "blank" if not prompt:
                return 200, _said("blank")
            case "broken":
                return 500, b""
            case "redirect":
                return 307, b""
            case "no-json":
                return 200, b"<html>"
            case "no-verdict":
                return 200, b'{"verdict": "perhaps"}'
            case "long":
                return 200, b" " * 70_000 + _said("allow")
            case "bomb":  # 64 MB of blanks and a verdict
                return 200, gzip.compress(b" " * 2**26 + _said("allow"))
            case "slow":
                time.sleep(6)
        return 200, _said("allow")


def _said(verdict: str) -> bytes:
    return json.dumps({"verdict": verdict, "reason": REASON}).encode()


@contextmanager
def safety_server() -> Iterator[SafetyServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/told":
                state.told.put(json.loads(content))
                self.send_response(204)
                self.end_headers()
                return
            if self.path != "/check":
                state.redirected += 1
                return
            state.keys.add(self.headers["Authorization"])
            state.bodies.append(json.loads(content))
            status, answer = state.answer(state.bodies[-1])
            self.send_response(status)
            if status == 307:
                self.send_header("Location", "/elsewhere")
            if answer.startswith(b"\x1f\x8b"):
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = SafetyServer(server.server_port)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
