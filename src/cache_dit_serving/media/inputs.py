"""Pictures that requests bring: from the bytes that a client sent to pixels, within bounds."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.bounds import Bounds, check_shape
from cache_dit_serving.media.structure.excessive import Excessive
from cache_dit_serving.media.structure.jpeg import check_jpeg
from cache_dit_serving.media.structure.png import check_png
from cache_dit_serving.media.structure.webp import check_webp
from cache_dit_serving.media.video_input import VIDEO_TYPES, InputVideo, read_video

FORMATS = ("PNG", "JPEG", "WEBP")
"""What is read; each decoder more is one more to be attacked through."""
CHECKS = {"PNG": check_png, "JPEG": check_jpeg, "WEBP": check_webp}
"""Run before the decoder of each format."""
_DATA_URI = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w-]+=[\w.-]+)*(?P<base64>;base64)?,", re.IGNORECASE)
_SPACES = {ord(space): None for space in " \t\r\n"}


@dataclass(frozen=True)
class InputPicture:
    """A picture as a pipeline is given it."""

    image: Image.Image
    """Upright; RGB, or L of a mask."""
    digest: str
    """SHA-256 of the file that was sent, in hexadecimal."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), pixels."""
        return self.image.size


@dataclass(frozen=True)
class Inputs:
    """What a request brings beside its fields."""

    images: tuple[InputPicture, ...] = ()
    mask: InputPicture | None = None
    control: InputPicture | None = None
    last_image: InputPicture | None = None
    video: InputVideo | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) in pixels of the first of them; None where there is none."""
        for each in (*self.images, self.control, self.video):
            if each is not None:
                return each.size
        return None


NO_INPUTS = Inputs()


@dataclass
class PictureReader:
    """Reads the pictures and the video of one request, within what they may take together.

    Raises, each method: InvalidRequest, naming `param` and the remedy.
    """

    settings: Bounds
    pixels_left: int = field(init=False)

    def __post_init__(self) -> None:
        self.pixels_left = self.settings.max_pixels

    def from_text(self, text: str, param: str, *, video: bool = False) -> bytes:
        """The bytes behind a data URI, or base64 by itself.

        Args:
            video: whether it is of a video, not of a picture.
        """
        kind, example = ("video", "video/mp4") if video else ("picture", "image/png")
        formats = "MP4 or WebM" if video else _formats()
        prefix = _DATA_URI.match(text[:200])
        if prefix is None and text[:5].lower() == "data:":
            raise InvalidRequest(f"{param} is not a data URI of a {kind}: data:{example};base64,...", param=param)
        if prefix is not None:
            if not prefix["base64"]:
                raise InvalidRequest(
                    f"{param} is a data URI without base64; send data:{example};base64,...", param=param
                )
            known = VIDEO_TYPES if video else _media_types()
            if prefix["type"] and prefix["type"].lower() not in known:
                raise InvalidRequest(
                    f"{param} is said to be {prefix['type']}; this server reads {formats}", param=param
                )
            text = text[prefix.end() :]
        if len(text) // 4 * 3 > self.settings.max_bytes + 3:
            raise too_many_bytes(self.settings, param)
        try:
            content = base64.b64decode(text.translate(_SPACES), validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest(
                f"{param} is not base64 of a {kind}; send a data URI, or base64 of a {formats} file", param=param
            ) from None
        if prefix is not None and prefix["type"] and not video:
            declared = prefix["type"].lower().removeprefix("image/").replace("jpg", "jpeg")
            found = format_of(content)
            if found is not None and found.lower() != declared:
                raise InvalidRequest(f"{param} is said to be {prefix['type']} but holds {found}", param=param)
        return content

    def picture(self, content: bytes, param: str) -> InputPicture:
        """A picture in colour, upright; what is transparent lies on white."""
        return InputPicture(_in_colour(self._decoded(content, param)), hashlib.sha256(content).hexdigest())

    def mask(self, content: bytes, param: str) -> InputPicture:
        """A mask: white is drawn anew, black is kept; of one with transparent parts those are drawn anew."""
        image = self._decoded(content, param)
        holes = _transparency(image)
        shown = _in_colour(image).convert("L") if holes is None else holes
        return InputPicture(shown, hashlib.sha256(content).hexdigest())

    def video(self, content: bytes, param: str, most_frames: int) -> InputVideo:
        """The first frames of a video."""
        self._check_bytes(content, param)
        return read_video(content, self.settings, param, most_frames)

    def _decoded(self, content: bytes, param: str) -> Image.Image:
        self._check_bytes(content, param)
        self._check_structure(content, param)
        try:
            # Of the file its header alone, so far.
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        except Image.DecompressionBombError:
            raise self._too_many_pixels(None, param) from None
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
            raise InvalidRequest(
                f"{param} is not a picture this server reads; send {_formats()}", param=param
            ) from None
        self._check_size(image.size, param)
        width, height = image.size
        self.pixels_left -= width * height
        # The further pictures of a phone's JPEG are a preview, or the gain map of a bright screen.
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            raise InvalidRequest(f"{param} is animated; send a picture of one frame", param=param)
        try:
            image.load()
            return ImageOps.exif_transpose(image)
        except MemoryError:
            raise
        except Exception as error:  # whatever a decoder makes of a broken file
            raise InvalidRequest(f"{param} is broken: its {image.format} data ends or errs", param=param) from error

    def _check_structure(self, content: bytes, param: str) -> None:
        """Refuse a file that claims more than a decoder should be given, before one is."""
        try:
            size = CHECKS[name](content) if (name := format_of(content)) else None
        except Excessive as claim:
            raise InvalidRequest(f"{param} {claim}; save the picture anew", param=param) from None
        if size is not None and all(size):
            self._check_size(size, param)

    def _check_size(self, size: tuple[int, int], param: str) -> None:
        if size[0] * size[1] > self.pixels_left:
            raise self._too_many_pixels(size, param)
        check_shape(size, self.settings, param)

    def _check_bytes(self, content: bytes, param: str) -> None:
        if len(content) > self.settings.max_bytes:
            raise too_many_bytes(self.settings, param)

    def _too_many_pixels(self, size: tuple[int, int] | None, param: str) -> InvalidRequest:
        said = f"has {size[0]:,} x {size[1]:,} pixels" if size else "has far too many pixels"
        return InvalidRequest(
            f"{param} {said}; the pictures of one request may have {self.settings.max_pixels:,} together",
            param=param,
            code="too_long",
        )


def too_many_bytes(bounds: Bounds, param: str) -> InvalidRequest:
    """The refusal of a file that is too large."""
    return InvalidRequest(f"{param} is a file of more than {bounds.max_bytes:,} bytes", param=param, code="too_long")


def format_of(content: bytes) -> str | None:
    """PNG, JPEG or WEBP by the first bytes of a file; None: another one."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if content.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    return "WEBP" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else None


def _in_colour(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which PIL's conversion would cut off at 255
        image = Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _transparency(image: Image.Image) -> Image.Image | None:
    """White where a picture is transparent; None where it is nowhere so."""
    if not image.has_transparency_data:
        return None
    holes = image.convert("RGBA").getchannel("A").point([255 - value for value in range(256)])
    return holes if holes.getbbox() else None


def _media_types() -> set[str]:
    return {f"image/{name.lower()}" for name in FORMATS} | {"image/jpg"}


def _formats() -> str:
    return "PNG, JPEG or WebP"
