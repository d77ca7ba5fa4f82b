"""Printing of the resolved settings as YAML, with the origin of each value that differs from its default."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cache_dit_serving.config.reading import Resolved


def printed(resolved: Resolved) -> str:
    """Return the tree as YAML. Secrets are left out: a comment says where each is set."""
    name, why = resolved.configuration
    return "\n".join((f"# configuration {name}: {why}", *_lines(resolved.settings, resolved, "", ""))) + "\n"


def _lines(section: BaseModel, resolved: Resolved, at: str, indent: str) -> Iterator[str]:
    fields = type(section).model_fields
    plain = section.model_dump(mode="json")
    for key, value in section:
        origin = resolved.origin(at + key) or "as an absolute path"
        differs = value != fields[key].get_default(call_default_factory=True)
        if not fields[key].repr and differs:
            yield f"{indent}# {key}: set, not shown  # {origin}"
        elif isinstance(value, BaseModel):
            yield f"{indent}{key}:{_comment(origin, fields[key], value)}"
            yield from _lines(value, resolved, f"{at}{key}.", f"{indent}  ")
        else:
            yield f"{indent}{key}: {_yaml(plain[key])}{f'  # {origin}' if differs else ''}"


def _comment(origin: str, field: FieldInfo, value: BaseModel) -> str:
    """Return the origin, as a comment, of a section that is absent by default and was set without any key."""
    absent_by_default = field.get_default(call_default_factory=True) is None
    return f"  # {origin}" if absent_by_default and not value.model_fields_set else ""


def _yaml(value: Any) -> str:
    """Return one value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").removesuffix("\n")
