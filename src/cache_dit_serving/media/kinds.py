"""Table of the kinds of outputs: one row with all that the server needs to know of a kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cache_dit_serving.config.settings import EncoderChoice
from cache_dit_serving.media.audio import encode_audio
from cache_dit_serving.media.images import encode_image
from cache_dit_serving.media.provenance import DigitalSource, Ingredient
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.media.video import encode_video
from cache_dit_serving.media.video_encoders import video_encoder

Sign = Callable[[bytes, str, DigitalSource, Sequence[Ingredient]], bytes]
"""Signer of a file. Its arguments: the file, its media type, its origin, and the files that it was made with."""


@dataclass(frozen=True)
class OutputSpec:
    """Files of one call's outputs."""

    format: str
    """File format: a key of the kind's `formats`."""
    image_quality: int | None = None
    """Quality of the lossy image formats, 1 to 100; None: `images.DEFAULT_QUALITY`."""
    source: DigitalSource | None = None
    """Origin that each file states; None: it states none."""
    ingredients: tuple[Ingredient, ...] = ()
    """Files of the request that a signature names; that which was edited first."""
    video_encoder: EncoderChoice = "x264"
    """Encoder of an MP4; found out when the first one is encoded."""
    sign: Sign | None = None
    """Signature of each finished file that states its origin; None: it has none."""
    keep_media: bool = False
    """Keep the raw arrays beside the file. Off by default, because floats take many times the file's size."""

    def of_blank(self) -> OutputSpec:
        """Return how the file of a blank output is written: it states that no model made it."""
        return replace(self, source=self.source and DigitalSource.BLANK, ingredients=())


Encode = Callable[[Any, Any, dict[str, Any], Sequence[dict[str, Any]]], bytes]
"""Encoder of an output of one kind. Its arguments: the output, its `OutputSpec` with a format of the kind, and the
request and its warnings for formats that hold text."""


@dataclass(frozen=True)
class Kind:
    """Facts about a kind of output."""

    answer_key: str
    """Key of the outputs in an answer, also the plural in messages."""
    several: bool
    """True if a request may make several; the answer then has a list."""
    format_field: str
    """Field of the request that names the file format."""
    formats: Mapping[str, str]
    """Media type by file format, which is also the file's extension. The first is the default."""
    encode: Encode
    difference_format: str | None
    """Format of an image of differences, which no loss may change; None: the requested format."""
    usual_pixel_steps: int | None
    """Default maximum of pixels x frames x steps x outputs of one request; None: the length of a sound bounds it."""
    measures: tuple[str, ...]
    """Measures of a cached output against the uncached one, by which it may have a floor; rows of `MEASURES`."""

    @property
    def default_format(self) -> str:
        """File format of a request that names none."""
        return next(iter(self.formats))


KINDS: dict[MediaKind, Kind] = {
    MediaKind.IMAGE: Kind(
        answer_key="images",
        several=True,
        format_field="image_format",
        formats={"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"},
        encode=lambda image, output, parameters, warnings: encode_image(
            image, output.format, output.image_quality, parameters, warnings, source=output.source
        ),
        difference_format="png",
        usual_pixel_steps=1024 * 1024 * 100 * 4,
        measures=("flip", "ssim", "psnr_db"),
    ),
    MediaKind.VIDEO: Kind(
        answer_key="video",
        several=False,
        format_field="video_format",
        formats={"mp4": "video/mp4", "webp": "image/webp", "gif": "image/gif"},
        encode=lambda video, output, parameters, _: encode_video(
            video, output.format, parameters, source=output.source, encoder=video_encoder(output.video_encoder)
        ),
        difference_format=None,
        usual_pixel_steps=1280 * 720 * 129 * 50,
        measures=("flip", "ssim", "psnr_db", "flicker"),
    ),
    MediaKind.AUDIO: Kind(
        answer_key="audio",
        several=False,
        format_field="audio_format",
        formats={"wav": "audio/wav", "flac": "audio/flac"},
        encode=lambda audio, output, parameters, _: encode_audio(audio, output.format, parameters, output.source),
        difference_format=None,
        usual_pixel_steps=None,
        measures=("spectral_db", "snr_db"),
    ),
}
MEDIA_TYPES = {extension: media_type for kind in KINDS.values() for extension, media_type in kind.formats.items()}
"""Media type by file extension."""
FORMATS_OF_FIELD = {kind.format_field: tuple(kind.formats) for kind in KINDS.values()}
"""File formats by the field of the request that names one."""
