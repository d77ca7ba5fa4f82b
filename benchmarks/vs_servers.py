"""Both servers of the comparison with cache_dit.serve: their start, their processes, and that they do the same work."""

from __future__ import annotations

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests
from PIL import Image, ImageChops

from benchmarks import old_server
from benchmarks.side_by_side import NEW, OLD
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.config.variables import variable_of

MODEL = BUNDLE_ROOT / "src" / "cache_dit_serving" / "embedded" / "emoji-flux"
CACHE_FLAGS = ("--cache", "--Fn", "1", "--Bn", "0", "--rdt", "0.24", "--w", "4", "--mcc", "3")
FLAGS = ("--model-path", str(MODEL), *CACHE_FLAGS, "--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1")
EQUAL = {
    "defaults.max_sequence_length": "512",  # FluxPipeline's own: the old server has no field for another one
    "cache.enable_taylorseer": "false",  # the model's configuration has it on; the old server only parses its flag
}
"""Settings that give this server the same work."""
BODY = {"width": 96, "height": 96, "num_inference_steps": 16}
PROMPT = {"prompt": "a red apple on a blue background", "seed": 7}


@dataclass
class Running:
    """A server and its processes."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    ready_s: float
    """Seconds from the command to the first 200 of /health."""

    def processes(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def cpu_s(self) -> float:
        """Return the CPU seconds of all processes since their start."""
        return sum(each.cpu_times().user + each.cpu_times().system for each in self.processes())

    def megabytes(self) -> tuple[float, float]:
        """Return RSS and PSS of all processes."""
        read = [each.memory_full_info() for each in self.processes()]
        return sum(each.rss for each in read) / 2**20, sum(each.pss for each in read) / 2**20


@contextmanager
def started(name: str, threads: int, folder: Path) -> Iterator[Running]:
    """Start a server and wait until it is ready. Its log and files lie in `folder`.

    Raises:
        RuntimeError: it ended; holds the end of its log.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words, environ = _command(name, port), _environment(name, threads, folder)
    url, log = f"http://127.0.0.1:{port}", folder / f"{port}.log"
    began = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(words, cwd=BUNDLE_ROOT, stdout=file, stderr=file, env=environ)
    try:
        while not _healthy(url):
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended:\n{log.read_text()[-4000:]}")
            time.sleep(0.02)
        yield Running(name, url, process, time.perf_counter() - began)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _command(name: str, port: int) -> list[str]:
    python, module = (
        (old_server.python(), "cache_dit.serve.serve") if name == OLD else (sys.executable, "cache_dit_serving.serve")
    )
    return [str(python), "-m", module, *FLAGS, "--port", str(port)]


def _environment(name: str, threads: int, folder: Path) -> dict[str, str]:
    given = {"OMP_NUM_THREADS": str(threads), "BENTOML_DO_NOT_TRACK": "True"}
    if name == OLD:
        return old_server.environment(os.environ) | given
    settings = EQUAL | {"model.cpu_threads": str(threads), "outputs.root": str(folder / "outputs")}
    return os.environ | given | {variable_of(key): value for key, value in settings.items()}


def _healthy(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=5).status_code == 200
    except (requests.ConnectionError, requests.Timeout):
        return False


def same_work(servers: Sequence[Running]) -> str:
    """Return a sentence on the steps that both servers reuse, and on their pictures.

    Raises:
        RuntimeError: they reuse none, or other steps: their times could not be compared.
    """
    (old, cached), (new, also) = (_picture(running) for running in servers)
    if cached != also or not cached:
        raise RuntimeError(f"{OLD} reused the steps {cached}, {NEW} {also}")
    differ = ImageChops.difference(old, new).getbbox() is not None
    pixels = "differ" if differ else "are the same, bit for bit"
    steps = f"{len(cached)} of {BODY['num_inference_steps']}"
    return f"Both reuse blocks in the same {steps} steps, and their pictures {pixels}."


def _picture(running: Running) -> tuple[Image.Image, list[int]]:
    """Return the picture of one request, and the steps that reused blocks."""
    answer = requests.post(f"{running.url}/generate", json=PROMPT | BODY | {"include_stats": True}, timeout=600)
    answer.raise_for_status()
    value = answer.json()
    stats = value["stats"]["cache_stats"][0]
    cached: list[int] = stats["cached_steps"] if running.name == OLD else stats["block_lists"][0]["cached_steps"]
    return Image.open(io.BytesIO(base64.b64decode(value["images"][0]))).convert("RGB"), cached
