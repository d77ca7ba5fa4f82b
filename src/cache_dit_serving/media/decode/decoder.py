"""The server's handle on one decoder process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

from PIL import Image

from cache_dit_serving.config.settings import InputSettings
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.logs import FORMAT_VARIABLE
from cache_dit_serving.media.decode import wire
from cache_dit_serving.media.fit import Fit
from cache_dit_serving.media.inputs import InputImage
from cache_dit_serving.media.origin import origin_from
from cache_dit_serving.media.video_input import THREADS, InputVideo

SOURCES = Path(__file__).resolve().parents[3]
"""Folder that holds the package. It goes into the child's PYTHONPATH, because a Bento does not install the package."""
INHERITED = (
    *("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT"),
    FORMAT_VARIABLE,
)
"""Environment variables that the child inherits. Others may hold keys and passwords."""
SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
"""Environment variables that keep libraries to one thread. Each thread reserves memory, which is limited."""
CHANNELS = {"RGB": 3, "L": 1}
"""Bytes per pixel of a returned image, by its mode."""
LONGEST_TEXT = 1_000
MaskKind = Literal["mask", "holed mask"]
"""Reading of a mask: `PictureReader.mask`, or `PictureReader.holed_mask` by OpenAI's rule."""
Kind = Literal["picture"] | MaskKind


class Decoder:
    """A decoder process, and the pixels that the current request may still use.

    One thread may use it at a time; :meth:`kill` may be called from any thread.
    """

    def __init__(self, settings: InputSettings) -> None:
        self._settings = settings
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        path = os.pathsep.join(filter(None, (str(SOURCES), inherited.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-W", "ignore", "-m", "cache_dit_serving.media.decode.process"),
                *(str(os.getpid()), str(settings.max_decode_bytes)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C goes to the terminal's whole foreground group, and the server drains first
            env=inherited | SINGLE_THREADED | {"PYTHONPATH": path},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self.param = ""
        """Field of the file that was sent last; empty before the first request."""
        self._pixels_left = 0

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def begin(self) -> None:
        """Reset the pixel budget for a new request. The first call waits until the child is ready.

        Raises:
            Ended: the child did not start.
        """
        if not self.param:
            wire.receive(self._from)
        self.param = "inputs"
        self._pixels_left = self._settings.max_pixels

    def image(self, kind: Kind, content: str | bytes, param: str) -> InputImage:
        """Decode an image or a mask. Text content is a data URI or base64.

        Raises:
            InvalidRequest: the child refused the file; the message names `param` and the remedy.
            Ended: the child ended.
        """
        self._ask(kind, content, param)
        image = self._image(wire.receive(self._from), self._pixels_left)
        self._pixels_left -= image.width * image.height
        done = self._done()
        return InputImage(image, _digest(done), origin_from(done.get("origin")))

    def video(self, content: str | bytes, param: str, most_frames: int) -> InputVideo:
        """Decode the first `most_frames` frames of a video. Text content is a data URI or base64.

        Raises:
            InvalidRequest: the child refused the file; the message names `param` and the remedy.
            Ended: the child ended.
        """
        self._ask("video", content, param, most_frames=most_frames)
        frames, done = list[Image.Image](), dict[str, Any]()
        for message in self._messages():
            if "done" in message:
                done = message["done"]
                break
            pixels_left = self._settings.max_video_pixels - sum(frame.width * frame.height for frame in frames)
            frames.append(self._image(message, pixels_left))
            if len(frames) > most_frames:
                raise wire.Ended
        fps, more = done.get("fps"), done.get("more")
        if not frames or not isinstance(fps, float) or not isinstance(more, bool):
            raise wire.Ended
        return InputVideo(tuple(frames), fps, more, _digest(done))

    def fitted(
        self, image: Image.Image, size: tuple[int, int], param: str, fit: Fit, *, bars: str = "black"
    ) -> Image.Image:
        """Resize an image as :func:`media.fit.fitted` does.

        Raises:
            InvalidRequest: resizing takes too much memory.
            Ended: the child ended.
        """
        how = {"to": size, "fit": fit, "bars": bars}
        self._ask("resize", image.tobytes(), param, mode=image.mode, size=image.size, **how)
        resized = self._image(wire.receive(self._from), size[0] * size[1])
        self._done()
        return resized

    def kill(self) -> None:
        """Kill the child at once. May be called from any thread."""
        self._process.kill()

    def close(self) -> None:
        """Kill the child, close its pipes and reap it."""
        self.kill()
        for stream in (self._to, self._from):
            with contextlib.suppress(OSError):  # unread bytes
                stream.close()
        self._process.wait()

    def _ask(self, do: str, content: str | bytes, param: str, **more: Any) -> None:
        self.param = param
        settings = self._settings
        names = ("max_bytes", "max_side", "max_pixels", "max_video_pixels")
        # Text that cannot be encoded is not base64 either; the child refuses the replacement characters. Spaces beyond
        # ASCII before it, which a paste may bring, are none to the child.
        data = content if isinstance(content, bytes) else content.lstrip().encode("utf-8", "replace")
        header = {
            "do": do,
            "param": param,
            "text": isinstance(content, str),
            "bytes": len(data),
            "bounds": {name: getattr(settings, name) for name in names},
            "pixels_left": self._pixels_left,
            "cpu_s": settings.max_decode_s * THREADS,
        }
        wire.send(self._to, header | more, data)

    def _messages(self) -> Iterator[dict[str, Any]]:
        while True:
            yield wire.receive(self._from)

    def _image(self, message: dict[str, Any], most_pixels: int) -> Image.Image:
        """Read the image that a message announces.

        The child may have been taken over by the file it read, so every value of the message is checked.
        """
        self._check_refusal(message)
        match message:
            case {"image": {"mode": ("RGB" | "L") as mode, "size": [int(width), int(height)]}}:
                if min(width, height) < 1 or width * height > most_pixels:
                    raise wire.Ended
                data = wire.receive_bytes(self._from, width * height * CHANNELS[mode])
                return Image.frombytes(mode, (width, height), data)
            case _:
                raise wire.Ended

    def _done(self) -> dict[str, Any]:
        match wire.receive(self._from):
            case {"done": dict(done)}:
                return cast(dict[str, Any], done)
            case _:
                raise wire.Ended

    def _check_refusal(self, message: dict[str, Any]) -> None:
        match message:
            case {"refused": {"message": str(text), "code": str(code)}}:
                raise InvalidRequest(text[:LONGEST_TEXT], param=self.param, code=code[:LONGEST_TEXT])
            case {"too_large": True}:
                raise too_large(self.param)


def too_large(param: str) -> InvalidRequest:
    """Return the error for a file that exhausted its decoder's memory."""
    return InvalidRequest(
        f"{param} takes more memory to decode than this server gives; send a smaller one", param=param
    )


def _digest(done: dict[str, Any]) -> str:
    digest = done.get("digest")
    if not isinstance(digest, str) or len(digest) != 64:
        raise wire.Ended
    return digest
