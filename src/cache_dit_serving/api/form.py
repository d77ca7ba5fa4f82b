"""A request as a form: its fields as text, its images as files (RFC 7578), as `curl -F` sends it.

It becomes the JSON that says the same, and is checked as that.
"""

from __future__ import annotations

import asyncio
import json
import re
import typing
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from cache_dit_serving.api.lenient import as_typed, scalar_of
from cache_dit_serving.api.operation import FormFile
from cache_dit_serving.engine.inputs import IMAGES, upload_name
from cache_dit_serving.engine.sent_as import SentAs
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.findings import cut, model_of_field

FORM = "multipart/form-data"
NESTED = re.compile(r"(\w+)(\[\])?\[(\w+)\]")
"""Names by OpenAI's SDK: a field of an object, `cache[enabled]`, and of the objects in a list, `loras[][name]`."""
MOST_FILES = 20
MOST_FIELDS = 100
CHUNK_BYTES = 2**20


class Form(NamedTuple):
    tree: dict[str, Any]
    """Fields, each as the type it has in JSON."""
    files: list[bytes]
    """Files, which fields name as :func:`upload_name` does."""
    sent_as: SentAs
    """Fields by the names that their files had."""


class _InMemory(MultiPartParser):
    """Parser of a body that is in memory, within its limit: nothing is copied to a disk."""

    spool_max_size = 2**40


async def read_form(body: bytes, headers: Headers, model: type[BaseModel], form: Sequence[FormFile]) -> Form:
    """Return the fields and files of a form that stands for a request of `model`'s.

    Args:
        form: files that it may hold.

    Raises:
        InvalidRequest: it is no form, holds another file, or a file or a field twice where there is one.
    """
    parser = _InMemory(
        headers, _chunks(body), max_files=MOST_FILES, max_fields=MOST_FIELDS, max_part_size=max(len(body), 1)
    )
    try:
        sent = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"the body is not a form that can be read: {error.message}") from None
    try:
        return await _read(sent, model, form)
    finally:
        await sent.close()


async def _read(sent: FormData, model: type[BaseModel], form: Sequence[FormFile]) -> Form:
    tree: dict[str, Any] = {}
    files: list[bytes] = []
    names: dict[str, str] = {}
    for name, value in sent.multi_items():
        if isinstance(value, UploadFile):
            field = _field_of(name, form)
            place = f"{IMAGES}.{len(tree.get(IMAGES, ()))}" if field == IMAGES else field
            names[place] = names[field] = cut(name.removesuffix("[]"))
            read: Any = upload_name(len(files))
            files.append(await value.read())
        elif nested := NESTED.fullmatch(name):
            _put_in(tree, model, *nested.groups(), text=value)
            continue
        else:
            field = name.removesuffix("[]")
            read = _as_json(value, field, model)
        if field == IMAGES and not isinstance(read, list):
            tree.setdefault(IMAGES, []).append(read)
        elif field in tree:
            param = cut(name.removesuffix("[]"))
            raise InvalidRequest(f"{param}: stands twice in the form; send it once", param=param)
        else:
            tree[field] = read
    return Form(tree, files, SentAs(_numbered(names)))


def _field_of(name: str, form: Sequence[FormFile]) -> str:
    """Return the field of a request that a file fills.

    Raises:
        InvalidRequest: the form takes no such file.
    """
    for file in form:
        if name in file.spellings:
            return file.field
    if not form:
        # Left to the check of the fields, which knows the routes that take images.
        return name.removesuffix("[]")
    *others, last = (file.name for file in form)
    taken = f"{', '.join(others)} or {last}" if others else last
    raise InvalidRequest(f"the file {cut(name)} is not one of a request; send {taken}", param=cut(name))


def _numbered(names: dict[str, str]) -> dict[str, str]:
    """Return the names, with a number behind each of several images, which tells them apart in an error."""
    images = [place for place in names if place.startswith(f"{IMAGES}.")]
    if len(images) < 2:
        return names
    return names | {place: f"{names[place]}.{place.rpartition('.')[2]}" for place in images}


def _put_in(
    tree: dict[str, Any], model: type[BaseModel], field: str, listed: str | None, key: str, *, text: str
) -> None:
    """Put a field of an object into its place in the tree."""
    inner = model_of_field(model, field)
    place = tree.setdefault(field, [] if listed else {})
    if inner is None or not isinstance(place, list if listed else dict):
        raise InvalidRequest(f"{cut(field)} has no fields of its own in a form", param=cut(field))
    if isinstance(place, list):
        if not place or key in place[-1]:
            place.append({})
        place = place[-1]
    if key in place:
        raise InvalidRequest(f"{cut(field)}.{cut(key)}: stands twice in the form; send it once", param=cut(field))
    place[key] = _as_json(text, key, inner)


async def _chunks(body: bytes) -> AsyncGenerator[bytes, None]:
    """Yield a body in parts; the event loop does other work after each."""
    for start in range(0, len(body), CHUNK_BYTES):
        yield body[start : start + CHUNK_BYTES]
        await asyncio.sleep(0)


def _as_json(text: str, name: str, model: type[BaseModel]) -> Any:
    """Return a text as the value that its field holds; unchanged if it is not one, to be refused."""
    kind = scalar_of(model, name)
    if kind is not None:
        return as_typed(text, kind) if text.strip() else None
    field = model.model_fields.get(name)
    parts = typing.get_args(field.annotation) if field is not None else ()
    if str in parts or not parts or name == IMAGES or any(isinstance(part, str) for part in _choices(parts)):
        return text
    try:
        return json.loads(text) if text.strip() else None
    except ValueError:
        return text


def _choices(parts: tuple[Any, ...]) -> list[Any]:
    """Return the values of a Literal among the parts of a field's type."""
    return [choice for part in parts for choice in typing.get_args(part) if typing.get_origin(part) is typing.Literal]
