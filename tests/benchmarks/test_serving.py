"""The benchmark of serving: how it waits for its server."""

from __future__ import annotations

import socket

from benchmarks.serving import is_ready


def test_a_server_that_accepts_and_stays_silent_is_not_ready_yet() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not is_ready(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.1)


def test_a_port_where_nothing_listens_is_not_ready_yet() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert not is_ready(f"http://127.0.0.1:{port}")
