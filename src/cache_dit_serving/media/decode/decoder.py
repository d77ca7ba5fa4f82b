"""One child process that decodes, as the server sees it."""

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
from cache_dit_serving.media.inputs import InputPicture
from cache_dit_serving.media.origin import origin_from
from cache_dit_serving.media.video_input import THREADS, InputVideo

SOURCES = Path(__file__).resolve().parents[3]
"""Holds the package, which is not installed in a Bento."""
INHERITED = (
    *("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT"),
    FORMAT_VARIABLE,
)
"""Environment variables that the child gets; others hold keys and passwords."""
SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
"""Threads reserve memory, which is limited."""
CHANNELS = {"RGB": 3, "L": 1}
"""Modes of the pictures that come back, and their bytes per pixel."""
LONGEST_TEXT = 1_000
MaskKind = Literal["mask", "holed mask"]
"""How a mask is read: `PictureReader.mask`, or `PictureReader.holed_mask` by OpenAI's rule."""
Kind = Literal["picture"] | MaskKind


class Decoder:
    """A child process, and what one request has left of its bounds. For one thread at a time, but for :meth:`kill`."""

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
            env=inherited | SINGLE_THREADED | {"PYTHONPATH": path},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self.param = ""
        """The field whose file was sent last."""
        self._pixels_left = 0

    @property
    def pid(self) -> int:
        """Number of the child process."""
        return self._process.pid

    def begin(self) -> None:
        """Wait until the child is there, and forget the request before.

        Raises:
            Ended: it cannot be started.
        """
        if not self.param:
            wire.receive(self._from)
        self.param = "inputs"
        self._pixels_left = self._settings.max_pixels

    def picture(self, kind: Kind, content: str | bytes, param: str) -> InputPicture:
        """A picture or a mask; as text a data URI or base64.

        Raises:
            InvalidRequest: naming `param` and the remedy.
            Ended: the child ended.
        """
        self._ask(kind, content, param)
        image = self._image(wire.receive(self._from), self._pixels_left)
        self._pixels_left -= image.width * image.height
        done = self._done()
        return InputPicture(image, _digest(done), origin_from(done.get("origin")))

    def video(self, content: str | bytes, param: str, most_frames: int) -> InputVideo:
        """The first frames of a video; as text a data URI or base64.

        Raises:
            InvalidRequest: naming `param` and the remedy.
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
        """The same picture at another size, as :func:`media.fit.fitted`.

        Raises:
            InvalidRequest: it takes too much memory.
            Ended: the child ended.
        """
        how = {"to": size, "fit": fit, "bars": bars}
        self._ask("resize", image.tobytes(), param, mode=image.mode, size=image.size, **how)
        resized = self._image(wire.receive(self._from), size[0] * size[1])
        self._done()
        return resized

    def kill(self) -> None:
        """End the child at once, whatever it does; from any thread."""
        self._process.kill()

    def close(self) -> None:
        """End the child, and free all that it took."""
        self.kill()
        for stream in (self._to, self._from):
            with contextlib.suppress(OSError):  # bytes that nobody read
                stream.close()
        self._process.wait()

    def _ask(self, do: str, content: str | bytes, param: str, **more: Any) -> None:
        self.param = param
        settings = self._settings
        names = ("max_bytes", "max_side", "max_pixels", "max_video_pixels")
        # What cannot be encoded is no base64 either: the child refuses it.
        data = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
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
        """A picture of a message. The child read a stranger's file, so nothing that it says is taken on trust."""
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
    """The refusal of a file that a decoder did not survive."""
    return InvalidRequest(
        f"{param} takes more memory to decode than this server gives; send a smaller one", param=param
    )


def _digest(done: dict[str, Any]) -> str:
    digest = done.get("digest")
    if not isinstance(digest, str) or len(digest) != 64:
        raise wire.Ended
    return digest
