"""A server of JSON pages on this machine: a stand-in for an index of packages or of vulnerabilities."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def answering(pages: Mapping[str, Any]) -> Iterator[str]:
    """Serve pages by path, 404 elsewhere; give the server's address.

    Args:
        pages: A page is what its JSON holds, or a function of the body of its request that returns this.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            page = pages.get(self.path)
            answer: Callable[[bytes], Any] = page if callable(page) else lambda _: page
            content = json.dumps(answer(body)).encode()
            self.send_response(200 if self.path in pages else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()
