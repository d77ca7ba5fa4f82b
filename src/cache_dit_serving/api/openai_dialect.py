"""Bodies of OpenAI's API as its clients and other vendors' send them, in this server's own fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cache_dit_serving.api.operation import UNSUPPORTED_FIELDS_HEADER, Respelt
from cache_dit_serving.engine.sent_as import SentAs
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.schemas.answers import RequestWarning
from cache_dit_serving.schemas.other_vendors import OF_GENERATIONS, OF_IMAGES, OF_VIDEOS, ForeignField

TEXTS = ("prompt", "negative_prompt")
"""Fields in which an empty text is not the same as none."""
FORMATS = {"jpg": "jpeg"}
PARTS_OF_SIZE = {"width": "size", "height": "size"}
IMAGES_SENT_AS = SentAs(
    {"num_images": "n", "image_quality": "output_compression", "image_format": "output_format"}, PARTS_OF_SIZE
)
PICTURES_SENT_AS = {"image_urls": "image", "mask_url": "mask"}
BESIDE_A_PICTURE = ("type", "detail")
"""Keys that clients put into an image's object beside the image."""


def generation_respelt(tree: dict[str, Any], lenient: bool) -> Respelt:
    """Respell the JSON of /v1/images/generations.

    Raises:
        InvalidRequest: a field of another vendor's API asks for something.
    """
    read, warnings = _own_fields(tree, OF_GENERATIONS, lenient)
    return Respelt(read, IMAGES_SENT_AS, warnings)


def edit_respelt(tree: dict[str, Any], lenient: bool) -> Respelt:
    """Respell the JSON of /v1/images/edits; its images stand in the fields of /generate.

    Raises:
        InvalidRequest: a field of another vendor's API asks for something.
    """
    read, warnings = _own_fields(tree, OF_IMAGES, lenient)
    names = {field: name for field, name in PICTURES_SENT_AS.items() if field not in tree}
    names |= _move_images(read, ("image", "images"))
    if "mask" in read:
        read["mask_url"], names["mask_url"] = _image(read.pop("mask"), "mask")
    return Respelt(read, IMAGES_SENT_AS | SentAs(names), warnings)


def video_respelt(tree: dict[str, Any], lenient: bool) -> Respelt:
    """Respell the JSON of /v1/videos; its image stands in the field of /generate.

    Raises:
        InvalidRequest: a field of another vendor's API asks for something.
    """
    read, warnings = _own_fields(tree, OF_VIDEOS, lenient)
    names = _move_images(read, ("input_reference",))
    frames = {} if "num_frames" in tree else {"num_frames": "seconds"}
    return Respelt(read, SentAs(names, PARTS_OF_SIZE | frames), warnings)


def _own_fields(
    tree: dict[str, Any], foreign: Mapping[str, ForeignField], lenient: bool
) -> tuple[dict[str, Any], tuple[RequestWarning, ...]]:
    """Return a body in the fields and spellings of OpenAI's API, and a warning for each field that it lacks."""
    read = _without_empty(tree)
    taken_out = [_take_out(read, name, foreign[name], lenient=lenient) for name in tree if name in foreign]
    extension = read.get("output_format")
    if isinstance(extension, str):
        read["output_format"] = FORMATS.get(extension.lower(), extension.lower())
    return read, tuple(warning for warning in taken_out if warning is not None)


def _without_empty(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the fields, with None for an empty text, which asks for nothing."""
    return {name: None if value == "" and name not in TEXTS else value for name, value in tree.items()}


def _take_out(tree: dict[str, Any], name: str, foreign: ForeignField, *, lenient: bool) -> RequestWarning | None:
    """Remove a field of another vendor's from a body, or put it under its name here.

    Raises:
        InvalidRequest: it asks for something, and is not to be ignored.
    """
    value = tree.pop(name)
    if foreign.asks_nothing(value):
        return None
    if not lenient:
        field_here = f"read as {foreign.field}" if foreign.field else "ignored"
        raise InvalidRequest(
            f"{name}: is not a field of this request; {foreign.remedy} "
            f"(with the header {UNSUPPORTED_FIELDS_HEADER}: warn it is {field_here})",
            param=name,
            code="unsupported_field",
        )
    if foreign.field is not None and tree.get(foreign.field) is None:
        tree[foreign.field] = value
        message = f"{name} was read as {foreign.field}; {foreign.remedy}"
        return RequestWarning(param=name, code="adjusted", message=message)
    message = f"{name} was ignored: it is not a field of this request; {foreign.remedy}"
    return RequestWarning(param=name, code="unsupported_field", message=message)


def _move_images(tree: dict[str, Any], sources: tuple[str, ...]) -> dict[str, str]:
    """Append the images of some fields to `image_urls`; return the place that each had."""
    found: list[tuple[Any, str]] = []
    for name in sources:
        value = tree.pop(name, None)
        if isinstance(value, list):
            found += [_image(each, f"{name}.{index}") for index, each in enumerate(value)]
        elif value is not None:
            found.append(_image(value, name))
    if not found:
        return {}
    before = tree.get("image_urls") or []
    if not isinstance(before, list):
        return {}
    tree["image_urls"] = [*before, *(image for image, _ in found)]
    places = {f"image_urls.{len(before) + index}": place for index, (_, place) in enumerate(found)}
    return places if before else {**places, "image_urls": found[0][1].partition(".")[0]}


def _image(value: Any, place: str) -> tuple[Any, str]:
    """Return an image out of the objects that clients put it into, and its place.

    Raises:
        InvalidRequest: it is the id of a file on OpenAI's servers.
    """
    while isinstance(value, dict):
        keys = [key for key in value if key not in BESIDE_A_PICTURE]
        if keys == ["file_id"]:
            raise InvalidRequest(
                f"{place}.file_id: this server keeps no files; send the picture itself, as image_url",
                param=f"{place}.file_id",
            )
        if keys not in (["image_url"], ["url"], ["b64_json"]):
            break
        value, place = value[keys[0]], f"{place}.{keys[0]}"
    return value, place
