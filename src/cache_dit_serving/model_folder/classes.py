"""Names of the installed diffusers' classes, read from its source: importing it takes seconds, and torch with it."""

from __future__ import annotations

import ast
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

LOADED_LIBRARIES = frozenset({"diffusers", "transformers"})
"""Libraries whose classes a component may have, beside the modules of diffusers' own pipelines."""


def has_class(name: str) -> bool:
    """Return whether the installed diffusers exports a name."""
    return name in _exported()


def has_module(library: str) -> bool:
    """Return whether diffusers loads a component's class from a library, as model_index.json names it."""
    return library in LOADED_LIBRARIES or (_source() / "pipelines" / library).is_dir()


def diffusers_version() -> str:
    """Return the version of the installed diffusers."""
    return version("diffusers")


def _source() -> Path:
    found = find_spec("diffusers")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("diffusers is not installed")
    return Path(found.origin).parent


@cache
def _exported() -> frozenset[str]:
    """Return every name in diffusers' table of lazy imports, and some other texts of the same file."""
    tree = ast.parse((_source() / "__init__.py").read_text(encoding="utf-8"))
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return frozenset(text for text in texts if isinstance(text, str) and text.isidentifier())
