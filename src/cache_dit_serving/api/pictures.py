"""Pictures in requests: taken out of the body before anything copies it, and read when the request is to be planned.

BentoML parses a body on the event loop. What reaches it holds the place of each picture alone.
"""

from __future__ import annotations

from typing import Any

from cache_dit_serving.config.settings import InputSettings
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.inputs import InputPicture, Inputs, PictureReader
from cache_dit_serving.schemas.request import GenerateRequest

UPLOAD = "upload:"
"""Begins the name of a picture that was taken out of the body."""
IMAGES, MASK = "image_urls", "mask_url"


def take_out_pictures(tree: dict[str, Any]) -> list[str]:
    """Replace each picture that a body holds as text by its name; the pictures, in the order of their names.

    Raises:
        InvalidRequest: a field holds such a name already.
    """
    uploads: list[str] = []

    def named(text: str, param: str) -> str:
        if text.startswith(UPLOAD):
            raise InvalidRequest(f"{param} is no picture; send a data URI or base64", param=param)
        if "://" in text[:16]:
            return text
        uploads.append(text)
        return f"{UPLOAD}{len(uploads) - 1}"

    images = tree.get(IMAGES)
    if isinstance(images, list):
        tree[IMAGES] = [
            named(each, f"{IMAGES}.{index}") if isinstance(each, str) else each for index, each in enumerate(images)
        ]
    if isinstance(tree.get(MASK), str):
        tree[MASK] = named(tree[MASK], MASK)
    return uploads


def read_pictures(request: GenerateRequest, uploads: list[str], settings: InputSettings) -> Inputs:
    """The pictures that a request names. Takes time: not for the event loop.

    Raises:
        InvalidRequest: naming the field and the remedy.
    """
    reader = PictureReader(settings)
    images: list[InputPicture] = []
    for index, name in enumerate(request.image_urls or ()):
        param = f"{IMAGES}.{index}"
        images.append(reader.picture(_content(name, uploads, reader, param), param))
    mask = None
    if request.mask_url is not None:
        mask = reader.mask(_content(request.mask_url, uploads, reader, MASK), MASK)
    return Inputs(tuple(images), mask)


def _content(name: str, uploads: list[str], reader: PictureReader, param: str) -> bytes:
    if not name.startswith(UPLOAD):
        scheme = name.partition(":")[0]
        raise InvalidRequest(
            f"{param}: this server opens no {scheme} address; send the picture as a data URI or base64", param=param
        )
    return reader.from_text(uploads[int(name.removeprefix(UPLOAD))], param)
