"""The decoder process. It reads files from its standard input, one at a time, and writes pixels to its standard output.

It holds no secrets of the server: it inherits few environment variables and no open files. Run as
`python -m cache_dit_serving.media.decode.process PARENT_ID MEMORY_BYTES`.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from PIL import Image

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.logs import configure_logs, configured_format
from cache_dit_serving.media.bounds import FixedBounds
from cache_dit_serving.media.decode import wire
from cache_dit_serving.media.fit import fitted
from cache_dit_serving.media.inputs import ImageReader

PR_SET_PDEATHSIG = 1
"""Option of Linux' prctl(2): the signal that this process gets when its parent ends."""


def main() -> None:
    """Answer requests until the server closes the pipe."""
    parent, memory_bytes = map(int, sys.argv[1:])
    configure_logs("WARNING", configured_format(), "decoder")
    _end_with(parent)
    incoming = sys.stdin.buffer
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as outgoing:
        # A library's print goes to standard error, so that it is not read as a message.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        _limit_memory(memory_bytes)
        try:
            wire.send(outgoing, {"ready": True})
            while True:
                asked = wire.receive(incoming)
                _answer(asked, wire.receive_bytes(incoming, asked["bytes"]), outgoing)
        except wire.Ended:
            os._exit(0)  # without a flush into a closed pipe


def _answer(asked: dict[str, Any], content: bytes, outgoing: IO[bytes]) -> None:
    _limit_cpu(asked["cpu_s"])
    try:
        if asked["do"] == "resize":
            image = Image.frombytes(asked["mode"], tuple(asked["size"]), content)
            _send_image(outgoing, fitted(image, tuple(asked["to"]), asked["fit"], bars=asked["bars"]))
            wire.send(outgoing, {"done": {}})
        else:
            _read(asked, content, outgoing)
    except InvalidRequest as error:
        wire.send(outgoing, {"refused": {"message": error.message, "code": error.code}})
    except MemoryError:
        wire.send(outgoing, {"too_large": True})


def _read(asked: dict[str, Any], content: bytes, outgoing: IO[bytes]) -> None:
    param, kind = asked["param"], asked["do"]
    reader = ImageReader(FixedBounds(**asked["bounds"]))
    reader.pixels_left = asked["pixels_left"]
    if asked["text"]:
        content = reader.from_text(content, param, video=kind == "video")
    if kind == "video":
        video = reader.video(content, param, asked["most_frames"])
        for frame in video.frames:
            _send_image(outgoing, frame)
        wire.send(outgoing, {"done": {"digest": video.digest, "fps": video.fps, "more": video.more}})
        return
    reads = {"picture": reader.image, "mask": reader.mask, "holed mask": reader.holed_mask}
    read = reads[kind](content, param)
    _send_image(outgoing, read.image)
    origin = asdict(read.origin) if read.origin else None
    wire.send(outgoing, {"done": {"digest": read.digest, "origin": origin}})


def _send_image(outgoing: IO[bytes], image: Image.Image) -> None:
    wire.send(outgoing, {"image": {"mode": image.mode, "size": image.size}}, image.tobytes())


def _end_with(parent: int) -> None:
    """Have Linux kill this process when the server ends. Elsewhere it ends with the pipe, after the current file."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit()


def _limit_memory(more_bytes: int) -> None:
    """Limit the address space to its present size plus `more_bytes`. Linux only, as it needs /proc."""
    if sys.platform == "linux":
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + more_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_cpu(seconds: float) -> None:
    """Limit the CPU time from now to `seconds` plus up to 2, for when the server cannot kill this process."""
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + seconds) + 1, hard))


if __name__ == "__main__":
    main()
