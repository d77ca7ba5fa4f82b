"""Validation errors of pydantic as short messages, each with its dotted field and the nearest known key."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

MOST_NAMED = 5
"""Maximum number of findings in one message."""
MOST_CHARACTERS = 60
"""Maximum length of a caller's text that a message repeats, characters."""
NOT_SUPPORTED = {"ip_adapter": "IP-Adapter", "textual_inversion": "textual inversion"}
"""Features of diffusers that this server lacks, by the prefix of their keys."""


class Finding(NamedTuple):
    """One validation error."""

    field: str
    """Dotted field; empty for the whole value."""
    kind: str
    """Pydantic's error type, such as `missing`."""
    message: str
    """Message without the field; empty for an unknown key, for which each caller has its own text."""
    keys: tuple[str, ...]
    """Parts of the dotted field."""


def findings_of(error: ValidationError) -> list[Finding]:
    """Return the first :data:`MOST_NAMED` findings, in pydantic's order."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return [_finding(detail["loc"], detail["type"], detail["msg"]) for detail in details[:MOST_NAMED]]


def and_more(error: ValidationError) -> str:
    """Return the suffix that counts the findings beyond :data:`MOST_NAMED`; empty without any."""
    rest = error.error_count() - MOST_NAMED
    return f"; and {rest:,} more" if rest > 0 else ""


def _finding(loc: Sequence[int | str], kind: str, message: str) -> Finding:
    # A part in brackets names the kind of a value, not a field.
    keys = tuple(cut(str(part)) for part in loc if not str(part).startswith("["))
    message = message.removeprefix("Value error, ").replace("Input should", "should")
    return Finding(".".join(keys), kind, "" if kind == "extra_forbidden" else message, keys)


def cut(text: str) -> str:
    """Cut a caller's or operator's text to :data:`MOST_CHARACTERS`."""
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + "..."


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """Return the known key with the most similar spelling; None if none is similar."""
    names = {name.lower(): name for name in known}
    nearest = difflib.get_close_matches(key.lower(), names, n=1, cutoff=0.5)
    return names[nearest[0]] if nearest else None


def not_supported(key: str) -> str | None:
    """Return a sentence for a key of an unsupported feature; None for every other key."""
    spelt = key.lower().replace("-", "_")
    named = next((what for beginning, what in NOT_SUPPORTED.items() if spelt.startswith(beginning)), None)
    return f"{named} is not supported; a style or a subject can be added by a LoRA" if named else None


def known_keys(model: type[BaseModel], keys: Sequence[str]) -> list[str]:
    """Return the fields of the model at the path `keys` below `model`; empty if there is no model."""
    found: type[BaseModel] | None = model
    for key in keys:
        if found is None:
            break
        found = model_of_field(found, key)
    return list(found.model_fields) if found else []


def model_of_field(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """Return the model of a nested field, also from a union; None if the field holds no model."""
    field = model.model_fields.get(key)
    return next(_models_in(field.annotation), None) if field else None


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models_in(part)
