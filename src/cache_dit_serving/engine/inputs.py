"""Images and videos of requests: fetched, decoded and resized before a request queues."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from cache_dit_serving.config.settings import InputSettings
from cache_dit_serving.media.decode.decoder import Decoder, MaskKind
from cache_dit_serving.media.decode.pool import DecodingPool
from cache_dit_serving.media.fetch import fetch
from cache_dit_serving.media.fit import bars_of
from cache_dit_serving.media.inputs import NO_INPUTS, InputImage, Inputs, too_many_bytes
from cache_dit_serving.planning.fields.inputs import FIELDS_OF_INPUTS
from cache_dit_serving.planning.fitting import Fitting
from cache_dit_serving.planning.planned import Planned
from cache_dit_serving.planning.tasks import Input
from cache_dit_serving.schemas.request import GenerateRequest
from cache_dit_serving.tracing import span

UPLOAD = "upload:"
"""Begins the name of an image that was taken out of the body."""
IMAGES, MASK, CONTROL, LAST_IMAGE, VIDEO = (
    FIELDS_OF_INPUTS[each] for each in (Input.IMAGE, Input.MASK, Input.CONTROL, Input.LAST_IMAGE, Input.VIDEO)
)
SINGLE = tuple(field for field in FIELDS_OF_INPUTS.values() if field != IMAGES)
"""Fields that hold one."""
LONGEST_PATH = 4096


def upload_name(index: int) -> str:
    """Return the name by which a field refers to the upload at `index` of its request."""
    return f"{UPLOAD}{index}"


async def inputs_of(
    request: GenerateRequest,
    uploads: list[str | bytes],
    settings: InputSettings,
    most_frames: int,
    decoding: DecodingPool,
    *,
    mask_kind: MaskKind = "mask",
) -> Inputs:
    """The images and the video that a request names, fetched where it names addresses.

    Args:
        most_frames: of the video; those that follow are not read.
        mask_kind: how the mask is read.

    Raises:
        InvalidRequest: naming the field and the remedy.
        ServingError: as :meth:`DecodingPool.run`.
    """
    named = {f"{IMAGES}.{index}": name for index, name in enumerate(request.image_urls or ())}
    named |= {field: name for field in SINGLE if (name := getattr(request, field)) is not None}
    # One after the other: a client that lists an address sixteen times does not get sixteen connections.
    if not named:
        return NO_INPUTS
    with span("fetch_inputs", inputs=len(named)):
        fetched = {param: await fetch(name, settings, param) for param, name in named.items() if not _is_upload(name)}
    with span("decode_inputs"):
        return await decoding.run(
            lambda decoder: _read(
                decoder, named, uploads, fetched, settings, mask_kind=mask_kind, most_frames=most_frames
            )
        )


async def with_fitting_images(planned: Planned, decoding: DecodingPool) -> Planned:
    """Resize as :meth:`Planned.fitted`, in the processes that decode: the pipeline's thread is kept free of it.

    Raises:
        ServingError: as :meth:`DecodingPool.run`.
    """
    if not planned.to_resize:
        return planned
    return await decoding.run(lambda decoder: planned.fitted(partial(_resized, decoder)))


def _resized(decoder: Decoder, fitting: Fitting, image: Image.Image) -> Image.Image:
    return decoder.fitted(image, fitting.drawn, fitting.field, fitting.fit, bars=bars_of(fitting.field))


def _read(
    decoder: Decoder,
    named: dict[str, str],
    uploads: list[str | bytes],
    fetched: dict[str, bytes],
    settings: InputSettings,
    *,
    mask_kind: MaskKind,
    most_frames: int,
) -> Inputs:
    def content_of(param: str) -> str | bytes:
        if param in fetched:
            return fetched[param]
        upload = uploads[int(named[param].removeprefix(UPLOAD))]
        return upload if isinstance(upload, bytes) else _content(upload, settings, param)

    def image(param: str) -> InputImage | None:
        return decoder.image("picture", content_of(param), param) if param in named else None

    images = [decoder.image("picture", content_of(param), param) for param in named if param.startswith(IMAGES)]
    return Inputs(
        images=tuple(images),
        mask=decoder.image(mask_kind, content_of(MASK), MASK) if MASK in named else None,
        control=image(CONTROL),
        last_image=image(LAST_IMAGE),
        video=decoder.video(content_of(VIDEO), VIDEO, most_frames) if VIDEO in named else None,
    )


def _is_upload(name: str) -> bool:
    return name.startswith(UPLOAD)


def _content(text: str, settings: InputSettings, param: str) -> str | bytes:
    """An image that came as text: the bytes of a file that the operator opens, or the text, which is base64."""
    path = _file_in(settings.folders, text)
    if path is None:
        return text
    if path.stat().st_size > settings.max_bytes:
        raise too_many_bytes(settings, param)
    return path.read_bytes()


def _file_in(folders: Sequence[Path], text: str) -> Path | None:
    """The file that a text names by its absolute path, links followed, where it lies in one of the folders."""
    if not folders or len(text) > LONGEST_PATH or not text.startswith("/"):
        return None
    try:
        path = Path(text).resolve()
        is_inside = any(path.is_relative_to(folder.resolve()) for folder in folders)
        return path if is_inside and path.is_file() else None
    except (OSError, ValueError):  # no path at all: base64 of a JPEG begins with / too
        return None
