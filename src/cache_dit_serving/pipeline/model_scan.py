"""transformers' scan of its own folder of models, which it makes twice as it is imported."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TypeAlias

Structure: TypeAlias = dict[frozenset[str], dict[str, set[str]]]
"""Names that each module gives, by the libraries that they need."""
PACKAGE = "transformers.models"
PREFIX = "models."


def import_models() -> None:
    """Import `transformers.models` with the scan that the import of `transformers` has made.

    transformers 5.23 reads its 1,600 files of models for `transformers` and again for `transformers.models`, 0.25 s of
    CPU each: its cache of folders holds 128 of 540. Does nothing where the package is imported, or keeps no scan.
    """
    from transformers.utils import import_utils

    scan = import_utils.define_import_structure
    if PACKAGE in sys.modules or not hasattr(scan, "cache_info"):
        return
    folder = Path(import_utils.__file__).parents[1] / "models"

    def made(path: str, prefix: str | None = None) -> Structure:
        if prefix is not None or Path(path) != folder / "__init__.py":
            return scan(path, prefix)
        return without_prefix(scan(folder, PREFIX.removesuffix(".")))

    import_utils.define_import_structure = made
    try:
        importlib.import_module(PACKAGE)
    finally:
        import_utils.define_import_structure = scan


def without_prefix(structure: Structure) -> Structure:
    """Return the modules of a structure that are the package's, by their names in it."""
    return {
        libraries: {name.removeprefix(PREFIX): {*given} for name, given in modules.items() if name.startswith(PREFIX)}
        for libraries, modules in structure.items()
    }
