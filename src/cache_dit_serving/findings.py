"""What pydantic finds wrong, in words: the first few findings, each with its dotted field and the nearest known key."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

MOST_NAMED = 5
"""Findings that one message names."""
MOST_CHARACTERS = 60
"""Of a key that a message repeats."""
NOT_SUPPORTED = {"ip_adapter": "IP-Adapter", "textual_inversion": "textual inversion"}
"""What diffusers has and this server has not, by how a key for it begins."""


class Finding(NamedTuple):
    """One thing that is wrong."""

    field: str
    """Dotted; empty for the whole value."""
    kind: str
    """Pydantic's error type, such as `missing`."""
    message: str
    """Without the field; empty for an unknown key, which the caller puts in its own words."""
    keys: tuple[str, ...]
    """The field's parts."""


def findings_of(error: ValidationError) -> list[Finding]:
    """The first :data:`MOST_NAMED` findings, in pydantic's order."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return [_finding(detail["loc"], detail["type"], detail["msg"]) for detail in details[:MOST_NAMED]]


def and_more(error: ValidationError) -> str:
    """What follows the findings that are named: how many are not."""
    rest = error.error_count() - MOST_NAMED
    return f"; and {rest:,} more" if rest > 0 else ""


def _finding(loc: Sequence[int | str], kind: str, message: str) -> Finding:
    # A part in brackets names the kind of a value, not a field.
    keys = tuple(cut(str(part)) for part in loc if not str(part).startswith("["))
    message = message.removeprefix("Value error, ").replace("Input should", "should")
    return Finding(".".join(keys), kind, "" if kind == "extra_forbidden" else message, keys)


def cut(text: str) -> str:
    """A caller's or operator's text, short enough to repeat."""
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + "..."


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """The known key that is spelt most like `key`; None where none is near."""
    names = {name.lower(): name for name in known}
    nearest = difflib.get_close_matches(key.lower(), names, n=1, cutoff=0.5)
    return names[nearest[0]] if nearest else None


def not_supported(key: str) -> str | None:
    """That what a key asks for is not supported, in words; None for every other key."""
    spelt = key.lower().replace("-", "_")
    named = next((what for beginning, what in NOT_SUPPORTED.items() if spelt.startswith(beginning)), None)
    return f"{named} is not supported; a style or a subject can be added by a LoRA" if named else None


def known_keys(model: type[BaseModel], keys: Sequence[str]) -> list[str]:
    """The fields of the model that lies at the place `keys` below `model`; empty where there is none."""
    found: type[BaseModel] | None = model
    for key in keys:
        if found is None:
            break
        found = model_of_field(found, key)
    return list(found.model_fields) if found else []


def model_of_field(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The model of a nested field, also where the field may be null or something else; None where it holds none."""
    field = model.model_fields.get(key)
    return next(_models_in(field.annotation), None) if field else None


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models_in(part)
