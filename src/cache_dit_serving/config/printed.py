"""Printing of the resolved settings as YAML, with the origin of each value that differs from its default."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cache_dit_serving.config.model_entry import ModelEntry
from cache_dit_serving.config.models import ENTRY_SECTIONS, SERVER_LIMITS
from cache_dit_serving.config.reading import Resolved
from cache_dit_serving.config.settings import Limits, Settings


def printed(resolved: Resolved) -> str:
    """Return the tree as YAML. Secrets are left out: a comment says where each is set.

    Each model of a list has all of its sections there, and the top level those of the server alone.
    """
    name, why = resolved.configuration
    lines = [f"# configuration {name}: {why}"]
    if resolved.settings.models:
        server = {section: () for section in Settings.model_fields if section not in (*ENTRY_SECTIONS, "models")}
        lines += _list(resolved)
        lines += _lines(resolved.settings, resolved, "", "", {"limits": SERVER_LIMITS, **server})
    else:
        lines += _lines(resolved.settings, resolved, "", "")
    return "\n".join(lines) + "\n"


def _list(resolved: Resolved) -> Iterator[str]:
    limits = tuple(name for name in Limits.model_fields if name not in SERVER_LIMITS)
    sections = {section: limits if section == "limits" else () for section in ENTRY_SECTIONS}
    by_name = {model.name: model for model in resolved.models}
    yield "models:"
    for index, entry in enumerate(resolved.settings.models):
        at, indent = f"models.{index}.", "    "
        above = _lines(entry, resolved, at, indent, dict.fromkeys(ModelEntry.model_fields.keys() - {"settings"}, ()))
        first, *others = above
        yield f"  - {first.removeprefix(indent)}"
        yield from others
        yield f"{indent}settings:"
        yield from _lines(by_name[entry.name].settings, resolved, f"{at}settings.", f"{indent}  ", sections)


def _lines(
    section: BaseModel, resolved: Resolved, at: str, indent: str, only: Mapping[str, Collection[str]] | None = None
) -> Iterator[str]:
    """Yield a section's lines.

    Args:
        only: keys to print, each with the keys to print below it, where none stands for all; None: all keys.
    """
    fields = type(section).model_fields
    plain = section.model_dump(mode="json")
    for key, value in section:
        if only is not None and key not in only:
            continue
        origin = resolved.origin(at + key) or "as an absolute path"
        differs = value != fields[key].get_default(call_default_factory=True)
        if not fields[key].repr and differs:
            yield f"{indent}# {key}: set, not shown  # {origin}"
        elif isinstance(value, BaseModel):
            yield f"{indent}{key}:{_comment(origin, fields[key], value)}"
            below = dict.fromkeys(only[key], ()) if only and only[key] else None
            yield from _lines(value, resolved, f"{at}{key}.", f"{indent}  ", below)
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
