"""Input images: decoding of uploaded bytes to pixels, within bounds."""

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
from cache_dit_serving.media.image_formats import CHECKS, READ, format_of, openable
from cache_dit_serving.media.origin import Origin, origin_of
from cache_dit_serving.media.provenance import Ingredient
from cache_dit_serving.media.structure.excessive import Excessive
from cache_dit_serving.media.video_input import InputVideo, read_video

SEVERAL_IN_ONE = frozenset({"MPO", "HEIF"})
"""Phone formats whose further images are a preview or an HDR gain map, not animation frames."""
LINE_BREAKS = 1.1
"""Allowance for line breaks in base64: characters with breaks per character without."""


@dataclass(frozen=True)
class InputImage:
    """A decoded image, ready for a pipeline."""

    image: Image.Image
    """Upright pixels, mode RGB; mode L for a mask."""
    digest: str
    """SHA-256 of the uploaded file, hexadecimal."""
    origin: Origin | None = None
    """Seed and size recorded in the file, if this server made it."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), pixels."""
        return self.image.size


@dataclass(frozen=True)
class Inputs:
    """Decoded images and video of a request."""

    images: tuple[InputImage, ...] = ()
    mask: InputImage | None = None
    control: InputImage | None = None
    last_image: InputImage | None = None
    video: InputVideo | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) in pixels of the first image, control image or video; None without any of them."""
        for each in (*self.images, self.control, self.video):
            if each is not None:
                return each.size
        return None

    @property
    def images_by_field(self) -> dict[str, InputImage]:
        """Images by request field, without the frames of the video."""
        named = {"mask_url": self.mask, "control_url": self.control, "last_image_url": self.last_image}
        images = {f"image_urls.{index}": image for index, image in enumerate(self.images)}
        return images | {field: image for field, image in named.items() if image is not None}

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """(width, height) in pixels of each image and of the video, by request field."""
        video = {} if self.video is None else {"video_url": self.video.size}
        return {field: image.size for field, image in self.images_by_field.items()} | video

    @property
    def digests(self) -> dict[str, Any]:
        """SHA-256 of each file by the field that brought it, as `sha256:` and 64 hexadecimal digits."""
        found: dict[str, Any] = {}
        if self.images:
            found["image_urls"] = [f"sha256:{image.digest}" for image in self.images]
        for name in ("mask", "control", "last_image", "video"):
            if (brought := getattr(self, name)) is not None:
                found[f"{name}_url"] = f"sha256:{brought.digest}"
        return found

    @property
    def ingredients(self) -> tuple[Ingredient, ...]:
        """Each file with its field: the video first, then the images, so that the first is the one that is edited."""
        files = {"video_url": self.video, **self.images_by_field}
        return tuple(Ingredient(field, f"sha256:{file.digest}") for field, file in files.items() if file is not None)

    def images_of(self, field: str) -> tuple[Image.Image, ...]:
        """Return the image of a field, or the frames of `video_url`."""
        if field == "video_url":
            return self.video.frames if self.video else ()
        return (self.images_by_field[field].image,)

    def exchanged(self, images: Mapping[int, Image.Image]) -> Inputs:
        """Return a copy with some images replaced.

        Args:
            images: replacements by `id()` of the image they replace.
        """

        def other(image: InputImage) -> InputImage:
            return replace(image, image=images.get(id(image.image), image.image))

        video = self.video
        return Inputs(
            images=tuple(other(image) for image in self.images),
            mask=other(self.mask) if self.mask else None,
            control=other(self.control) if self.control else None,
            last_image=other(self.last_image) if self.last_image else None,
            video=replace(video, frames=tuple(images.get(id(frame), frame) for frame in video.frames))
            if video
            else None,
        )


NO_INPUTS = Inputs()


@dataclass
class ImageReader:
    """Reader of one request's images and video. The images share one pixel budget, `settings.max_pixels`.

    Each method raises InvalidRequest for a refused file; the message names `param` and the remedy.
    """

    settings: Bounds
    pixels_left: int = field(init=False)

    def __post_init__(self) -> None:
        self.pixels_left = self.settings.max_pixels

    def from_text(self, text: bytes, param: str, *, video: bool = False) -> bytes:
        """Decode a data URI or plain base64 to the bytes of a file.

        Args:
            video: the file is a video, not an image; used in errors.
        """
        if len(text) * 3 / 4 > LINE_BREAKS * self.settings.max_bytes + 3:
            raise too_many_bytes(self.settings, param)
        if video:
            return bytes_of(text, param, kind="video", formats="MP4 or WebM", media_type="video/mp4")
        return bytes_of(text, param, kind="picture", formats=READ, media_type="image/png")

    def image(self, content: bytes, param: str) -> InputImage:
        """Decode an image to upright RGB, with transparent areas on white."""
        image = self._decoded(content, param)
        return InputImage(in_colour(image), hashlib.sha256(content).hexdigest(), origin_of(image))

    def mask(self, content: bytes, param: str) -> InputImage:
        """Decode a mask. White opaque areas are redrawn; black or transparent ones are kept."""
        return InputImage(as_mask(self._decoded(content, param)), hashlib.sha256(content).hexdigest())

    def holed_mask(self, content: bytes, param: str) -> InputImage:
        """Decode a mask by the rule of OpenAI's API. Transparent areas are redrawn; in an opaque mask, white ones."""
        image = self._decoded(content, param)
        found = holes(image)
        shown = as_mask(image) if found is None else found
        return InputImage(shown, hashlib.sha256(content).hexdigest())

    def video(self, content: bytes, param: str, most_frames: int) -> InputVideo:
        """Decode the first `most_frames` frames of a video."""
        self._check_bytes(content, param)
        return read_video(content, self.settings, param, most_frames)

    def _decoded(self, content: bytes, param: str) -> Image.Image:
        self._check_bytes(content, param)
        self._check_structure(content, param)
        try:
            # PIL reads only the header here.
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
        except Exception as error:  # a decoder may raise anything on a broken file
            raise InvalidRequest(f"{param} is broken: its {image.format} data ends or errs", param=param) from error

    def _check_structure(self, content: bytes, param: str) -> None:
        """Refuse a file that claims too many parts or pixels, before a decoder opens it."""
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
    """Return the error for a file larger than `max_bytes`."""
    return InvalidRequest(f"{param} is a file of more than {bounds.max_bytes:,} bytes", param=param, code="too_long")
