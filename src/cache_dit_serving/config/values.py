"""Lenient reading of written values: the quotes of an env file, and a single value in place of a list of one."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel

from cache_dit_serving.findings import model_of_field

QUOTES = "\"'"
SCALARS = (str, int, float, Path)


def unquoted(text: str) -> str:
    """Return a variable's value without the blanks, carriage return and one pair of quotes around it.

    Docker's --env-file keeps quotes as part of the value, and the carriage return of a file with Windows line ends.
    """
    text = text.strip()
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in QUOTES
    return text[1:-1] if quoted else text


def items_of(text: str, model: type[BaseModel] | None, key: str) -> str | list[str]:
    """Return the items of a comma-separated text where the setting is a list of plain values, else the text itself.

    A path may hold a comma: a text is one path.
    """
    item = _item(model, key)
    if not _is_scalar(item):
        return text
    parts = [text] if item is Path else text.split(",")
    return [part.strip() for part in parts if part.strip()]


def with_lists(tree: dict[str, Any], model: type[BaseModel] | None) -> dict[str, Any]:
    """Return the tree with a list of one wherever a single value stands in place of a list."""
    return {key: _as_list(value, model, key) for key, value in tree.items()}


def _as_list(value: Any, model: type[BaseModel] | None, key: str) -> Any:
    item = _item(model, key)
    if isinstance(value, dict):
        section = model_of_field(model, key) if model else None
        return [value] if _is_model(item) else with_lists(value, section)
    if isinstance(value, list) and isinstance(item, type) and issubclass(item, BaseModel):
        return [with_lists(each, item) if isinstance(each, dict) else each for each in value]
    return [value] if isinstance(value, str | int | float) and _is_scalar(item) else value


def _item(model: type[BaseModel] | None, key: str) -> object:
    """Return the item type of a setting that is a list; None if it is none, or may be a plain value too."""
    field = model.model_fields.get(key) if model and isinstance(key, str) else None
    kinds = list(_alternatives(field.annotation)) if field else []
    lists = [kind for kind in kinds if typing.get_origin(kind) is tuple]
    if len(lists) != 1 or any(_is_scalar(kind) for kind in kinds):
        return None
    item, *rest = typing.get_args(lists[0])
    return typing.get_args(item)[0] if rest == [...] and typing.get_origin(item) is Annotated else item


def _alternatives(annotation: object) -> Iterator[object]:
    """Yield the members of a union, nested ones too; of any other type the type itself."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        for part in typing.get_args(annotation):
            yield from _alternatives(part)
    else:
        yield annotation


def _is_scalar(kind: object) -> bool:
    return kind in SCALARS or typing.get_origin(kind) is Literal


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
