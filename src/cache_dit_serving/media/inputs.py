"""Pictures that requests bring: from the bytes that a client sent to pixels, within bounds."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.base64_text import bytes_of
from cache_dit_serving.media.bounds import Bounds, check_shape
from cache_dit_serving.media.colour import as_mask, holes, in_colour
from cache_dit_serving.media.origin import Origin, origin_of
from cache_dit_serving.media.picture_formats import CHECKS, READ, format_of, openable
from cache_dit_serving.media.structure.excessive import Excessive
from cache_dit_serving.media.video_input import InputVideo, read_video

SEVERAL_IN_ONE = frozenset({"MPO", "HEIF"})
"""Formats of phones, whose further pictures are a preview, or the gain map of a bright screen."""
LINE_BREAKS = 1.1
"""Characters of base64 with line breaks for each without."""


@dataclass(frozen=True)
class InputPicture:
    """A picture as a pipeline is given it."""

    image: Image.Image
    """Upright; RGB, or L of a mask."""
    digest: str
    """SHA-256 of the file that was sent, in hexadecimal."""
    origin: Origin | None = None
    """Seed and size that drew it, where its file tells."""

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

    @property
    def pictures(self) -> dict[str, InputPicture]:
        """Pictures by the field that brought each; all but those of a video."""
        named = {"mask_url": self.mask, "control_url": self.control, "last_image_url": self.last_image}
        images = {f"image_urls.{index}": picture for index, picture in enumerate(self.images)}
        return images | {field: picture for field, picture in named.items() if picture is not None}

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """(width, height) in pixels by field, of each picture and of the video."""
        video = {} if self.video is None else {"video_url": self.video.size}
        return {field: picture.size for field, picture in self.pictures.items()} | video

    @property
    def digests(self) -> dict[str, Any]:
        """SHA-256 of each file by the field that brought it, as `sha256:` and 64 hexadecimal digits."""
        found: dict[str, Any] = {}
        if self.images:
            found["image_urls"] = [f"sha256:{picture.digest}" for picture in self.images]
        for name in ("mask", "control", "last_image", "video"):
            if (brought := getattr(self, name)) is not None:
                found[f"{name}_url"] = f"sha256:{brought.digest}"
        return found

    def images_of(self, field: str) -> tuple[Image.Image, ...]:
        """The picture of a field, or the frames of `video_url`."""
        if field == "video_url":
            return self.video.frames if self.video else ()
        return (self.pictures[field].image,)

    def exchanged(self, images: Mapping[int, Image.Image]) -> Inputs:
        """The same files with other pixels: images by the identity of those that they replace."""

        def other(picture: InputPicture) -> InputPicture:
            return replace(picture, image=images.get(id(picture.image), picture.image))

        video = self.video
        return Inputs(
            images=tuple(other(picture) for picture in self.images),
            mask=other(self.mask) if self.mask else None,
            control=other(self.control) if self.control else None,
            last_image=other(self.last_image) if self.last_image else None,
            video=replace(video, frames=tuple(images.get(id(frame), frame) for frame in video.frames))
            if video
            else None,
        )


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
        if len(text) * 3 / 4 > LINE_BREAKS * self.settings.max_bytes + 3:
            raise too_many_bytes(self.settings, param)
        if video:
            return bytes_of(text, param, kind="video", formats="MP4 or WebM", media_type="video/mp4")
        return bytes_of(text, param, kind="picture", formats=READ, media_type="image/png")

    def picture(self, content: bytes, param: str) -> InputPicture:
        """A picture in colour, upright; what is transparent lies on white."""
        image = self._decoded(content, param)
        return InputPicture(in_colour(image), hashlib.sha256(content).hexdigest(), origin_of(image))

    def mask(self, content: bytes, param: str) -> InputPicture:
        """A mask: what is white and visible is drawn anew; what is black or transparent is kept."""
        return InputPicture(as_mask(self._decoded(content, param)), hashlib.sha256(content).hexdigest())

    def holed_mask(self, content: bytes, param: str) -> InputPicture:
        """A mask as OpenAI's API has it: what is transparent is drawn anew; of an opaque one, what is white."""
        image = self._decoded(content, param)
        found = holes(image)
        shown = as_mask(image) if found is None else found
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
            image = Image.open(io.BytesIO(content), formats=openable(content, param))
        except Image.DecompressionBombError:
            raise self._too_many_pixels(None, param) from None
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
            raise InvalidRequest(f"{param} is not a picture this server reads; send {READ}", param=param) from None
        self._check_size(image.size, param)
        width, height = image.size
        self.pixels_left -= width * height
        if image.format not in SEVERAL_IN_ONE and getattr(image, "n_frames", 1) > 1:
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
