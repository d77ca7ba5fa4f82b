"""Clients that go on in the background, or leave."""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import Future

import requests

from tests.support.server import Server


def start(server: Server, **fields: object) -> Future[requests.Response]:
    """A generation in the background, on a connection of its own."""
    future: Future[requests.Response] = Future()

    def run() -> None:
        try:
            body = {"prompt": "a cat", **fields}
            headers = dict(server.session.headers)
            future.set_result(requests.post(f"{server.url}/generate", json=body, headers=headers, timeout=240))
        except requests.RequestException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def bare_connection(server: Server, timeout_s: float | None = None) -> socket.socket:
    """A connection for bytes as they stand."""
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout_s)


def leave(server: Server, path: str = "/generate", **fields: object) -> socket.socket:
    """A generation on a bare connection, to be closed in the middle."""
    connection = bare_connection(server)
    host, _ = connection.getpeername()
    body = json.dumps({"prompt": "a cat", **fields}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    if (key := server.session.headers.get("Authorization")) is not None:
        head += f"Authorization: {key!s}\r\n"
    connection.sendall(head.encode() + b"\r\n" + body)
    return connection
