"""A real S3 server on a port of this machine: moto's."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.support.server import free_port

# In an environment of its own, which uv makes: its botocore does not take the python-dateutil that the service pins.
MOTO = "moto[server]==5.2.5"
BUCKET = "pictures"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
START_S = 120
"""It is downloaded the first time."""


@dataclass
class S3:
    """A server with one empty bucket."""

    process: subprocess.Popen[bytes]
    url: str

    @property
    def options(self) -> dict[str, str | bool]:
        """For `outputs.store_options`."""
        return {"endpoint": self.url, "region": "us-east-1", "allow_http": True}

    def names(self) -> list[str]:
        """Of the objects in the bucket."""
        listed = requests.get(f"{self.url}/{BUCKET}?list-type=2", timeout=60).text
        return [part.partition("</Key>")[0] for part in listed.split("<Key>")[1:]]

    def stop(self) -> None:
        """At once: its port is closed from then on."""
        self.process.kill()
        self.process.wait()


@contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    port = free_port()
    uv = [str(Path(sys.executable).parent / "uv"), "tool", "run", "--quiet", "--from", MOTO]
    # Its path, and not `uv tool run`: that would stay between this process and the server.
    found = subprocess.run(
        [*uv, "python", "-c", "import sys; print(sys.executable)"],
        capture_output=True,
        text=True,
        timeout=START_S,
        check=True,
    )
    command = [found.stdout.strip(), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "s3.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    server = S3(process, f"http://127.0.0.1:{port}")
    try:
        end = time.monotonic() + START_S
        while True:
            try:
                requests.put(f"{server.url}/{BUCKET}", timeout=60).raise_for_status()
                break
            except requests.ConnectionError:
                assert process.poll() is None, (folder / "s3.log").read_text(errors="replace")
                assert time.monotonic() < end, "the S3 server does not listen"
                time.sleep(0.1)
        yield server
    finally:
        server.stop()
