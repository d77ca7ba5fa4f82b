"""The child process: reads one file after the other from its standard input, and writes pixels to its standard output.

It holds no secrets of the server: it gets few environment variables and no open files. Run as
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
from cache_dit_serving.media.inputs import PictureReader

PR_SET_PDEATHSIG = 1
"""Of Linux' prctl(2)."""


def main() -> None:
    """Answer until the server closes the pipe."""
    parent, memory_bytes = map(int, sys.argv[1:])
    configure_logs("WARNING", configured_format(), "decoder")
    _end_with(parent)
    incoming = sys.stdin.buffer
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as outgoing:
        # Should a library print, it is not taken for a message.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        _limit_memory(memory_bytes)
        try:
            wire.send(outgoing, {"ready": True})
            while True:
                asked = wire.receive(incoming)
                _answer(asked, wire.receive_bytes(incoming, asked["bytes"]), outgoing)
        except wire.Ended:
            os._exit(0)  # not to flush into a pipe that nobody reads


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
    reader = PictureReader(FixedBounds(**asked["bounds"]))
    reader.pixels_left = asked["pixels_left"]
    if asked["text"]:
        content = reader.from_text(content.decode(), param, video=kind == "video")
    if kind == "video":
        video = reader.video(content, param, asked["most_frames"])
        for frame in video.frames:
            _send_image(outgoing, frame)
        wire.send(outgoing, {"done": {"digest": video.digest, "fps": video.fps, "more": video.more}})
        return
    reads = {"picture": reader.picture, "mask": reader.mask, "holed mask": reader.holed_mask}
    read = reads[kind](content, param)
    _send_image(outgoing, read.image)
    origin = asdict(read.origin) if read.origin else None
    wire.send(outgoing, {"done": {"digest": read.digest, "origin": origin}})


def _send_image(outgoing: IO[bytes], image: Image.Image) -> None:
    wire.send(outgoing, {"image": {"mode": image.mode, "size": image.size}}, image.tobytes())


def _end_with(parent: int) -> None:
    """End when the server does, even in the middle of a file; elsewhere than on Linux after it, as the pipe closes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit()


def _limit_memory(more_bytes: int) -> None:
    """Let this process take so many bytes beyond those of its libraries; only where /proc tells those."""
    if sys.platform == "linux":
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + more_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_cpu(seconds: float) -> None:
    """Let the system end this process after so much more CPU time, should the server not be there to do it."""
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + seconds) + 1, hard))


if __name__ == "__main__":
    main()
