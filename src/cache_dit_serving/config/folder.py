"""Checks of a model's path (a folder that `save_pretrained` wrote, or a hub id), and reading of its JSON files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from cache_dit_serving.config.hub_file import HUB_ID, hub_file, hub_page

INDEX = "model_index.json"
ReadJson = Callable[[str], "Mapping[str, Any] | None"]
"""Function that returns the JSON object in a file of a model, by its relative path; None if it cannot be read."""


def in_folder(folder: Path) -> ReadJson:
    """Return a reader of a folder's JSON files, which reads each file once."""

    @cache
    def read(name: str) -> Mapping[str, Any] | None:
        try:
            if not (folder / name).is_file():
                return None
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    return read


def is_folder(path: str) -> bool:
    """Return whether a path is a folder on this machine that this process may see."""
    return _seen(path, Path.is_dir)


def is_file(path: str) -> bool:
    """Return whether a path is a file on this machine that this process may see."""
    return _seen(path, Path.is_file)


def is_dangling(path: str) -> bool:
    """Return whether a path is a link to nothing, or to itself."""
    return _seen(path, Path.is_symlink) and not is_there(path)


def is_there(path: str) -> bool:
    """Return whether a path is a file or folder on this machine that this process may see."""
    return _seen(path, Path.exists)


def _seen(path: str, question: Callable[[Path], bool]) -> bool:
    try:
        return question(Path(path).expanduser())
    except (OSError, RuntimeError):  # its folder is closed to this user; no such user, as in `~user`
        return False


def refusal(path: str) -> str | None:
    """Return the reason that a path is no model, as a sentence without the path.

    None for a folder, whose contents `model_folder` checks, for a file, which `config.sources` checks, and for a text
    of a hub id's form.
    """
    try:
        if Path(path).expanduser().is_file():
            return None
    except OSError as error:
        return f"the model's path cannot be read: {error.strerror}; give this user the right to read it"
    except RuntimeError:
        return "the model's path names the home of a user who is not known here"
    if is_dangling(path):
        return "the model's path is a link without a target on the server"
    if is_folder(path) or HUB_ID.fullmatch(path) or hub_file(path):
        return None
    if page := hub_page(path):
        return f"the model's path is an address of the hub; name the model by its hub id, {page}"
    return "the model's path is neither a folder or file on the server nor a hub id like owner/name"
