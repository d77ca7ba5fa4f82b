"""Lenient reading of bodies as clients of `cache_dit.serve` send them, if the operator or the request chooses it.

That server took numbers as text and whole numbers with a fraction, any seed, and any spelling of a folder.
"""

from __future__ import annotations

import posixpath
import re
import typing
from typing import Any

from pydantic import BaseModel

from cache_dit_serving.findings import model_of_field
from cache_dit_serving.schemas.answers import RequestWarning
from cache_dit_serving.schemas.request import MAX_SEED

NUMBER = re.compile(r"[+-]?\d{1,20}(\.\d{1,20})?([eE][+-]?\d{1,2})?")
TRUTH = {"true": True, "false": False}
RANDOM_SEED = -1
"""Seed that stands for none in many clients."""


def read_leniently(tree: dict[str, Any], model: type[BaseModel]) -> tuple[dict[str, Any], list[RequestWarning]]:
    """Return a body with each scalar as the type of its field, and a warning for each changed value.

    What makes no sense stays as it is, to be refused.
    """
    read = {name: as_typed(value, scalar_of(model, name)) for name, value in tree.items()}
    warnings: list[RequestWarning] = []
    if "seed" in model.model_fields and type(seed := read.get("seed")) is int:
        if seed == RANDOM_SEED:
            read["seed"] = None
            message = "a seed of -1 stands for any; `seeds` tells the one that was drawn"
            warnings.append(RequestWarning(param="seed", code="adjusted", message=message))
        elif seed > MAX_SEED:
            read["seed"] = seed % (MAX_SEED + 1)
            message = f"seeds go up to {MAX_SEED}; {read['seed']} was used, the given one modulo 2^53"
            warnings.append(RequestWarning(param="seed", code="adjusted", message=message))
    if isinstance(folder := read.get("output_dir"), str):
        # "a/b/" and "./a/b" are "a/b"; what leads out of the root stays so, and is refused.
        spelt = posixpath.normpath(folder) if folder else "."
        read["output_dir"] = None if spelt == "." else spelt
    return read, warnings


def with_whole_numbers(tree: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Return a body whose 7.0 is 7 if its field holds an integer, as in JSON Schema; the same object without any.

    Strict pydantic 2 refuses such a number; many languages write no other.
    """
    read: dict[str, Any] = {}
    for name, value in tree.items():
        whole = value
        if isinstance(value, float) and value.is_integer() and scalar_of(model, name) is int:
            whole = int(value)
        elif isinstance(value, dict) and (inner := model_of_field(model, name)) is not None:
            whole = with_whole_numbers(value, inner)
        if whole is not value:
            read[name] = whole
    return tree | read if read else tree


def scalar_of(model: type[BaseModel], name: str) -> type | None:
    """Return bool, int or float if a field holds that."""
    field = model.model_fields.get(name)
    if field is None:
        return None
    parts = (field.annotation, *typing.get_args(field.annotation))
    return next((part for part in parts if part in (bool, int, float)), None)


def as_typed(value: Any, kind: type | None) -> Any:
    """Return a scalar as the type of its field if it is spelt as one; else unchanged, to be refused."""
    if kind is bool and isinstance(value, str):
        return TRUTH.get(value.strip().lower(), value)
    if kind in (int, float) and isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        text = value.strip().lstrip("+")
        # Not by way of a float where there is no need: that would change a long seed.
        value = int(text) if text.removeprefix("-").isdecimal() else float(text)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value
