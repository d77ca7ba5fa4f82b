"""A hub of this machine: lists and gives the files below a folder, as huggingface_hub's client asks for them."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILE = re.compile(r"/(?P<hub_id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>[^?]+)")
MODEL = re.compile(r"/api/models/(?P<hub_id>[^/]+/[^/?]+)(?P<tree>/tree/)?")
RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class Hub(ThreadingHTTPServer):
    """A hub whose models lie in `owner/name` below a folder."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.root = root
        self.asked: list[tuple[str, str]] = []
        """Methods and paths of the requests."""

    @property
    def given(self) -> list[str]:
        """Names of the files that were downloaded as a whole."""
        return [path.rpartition("/")[2] for method, path in self.asked if method == "GET whole"]


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._file("HEAD")

    def do_GET(self) -> None:
        match = MODEL.match(self.path)
        if match is None:
            self._file("GET")
            return
        hub_id = match["hub_id"]
        folder = self.server.root / hub_id
        if not folder.is_dir():
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        if match["tree"]:
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            tree = [
                {"type": "file", "path": str(file.relative_to(folder)), "size": file.stat().st_size, "oid": COMMIT}
                for file in files
            ]
            self._answer(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
            return
        names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        about = {"id": hub_id, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        self._answer(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

    def _file(self, method: str) -> None:
        match = FILE.match(self.path)
        file = self.server.root / match["hub_id"] / match["name"] if match else None
        if file is None or not file.is_file():
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        part = RANGE.fullmatch(self.headers.get("Range", ""))
        if method == "GET":
            self.server.asked.append((f"GET {'part' if part else 'whole'}", self.path))
        if part:
            content = content[int(part[1]) : int(part[2]) + 1]
        self._answer(206 if part else 200, content, headers)

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def hub_of(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process asks in place of the usual one, with a cache of its own."""
    hub = Hub(root)
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    for name, value in (("ENDPOINT", endpoint), ("HF_HUB_CACHE", str(cache)), ("HF_HUB_OFFLINE", False)):
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", endpoint)
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
