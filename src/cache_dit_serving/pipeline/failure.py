"""What a library's exception says to people who see no log."""

from __future__ import annotations

import traceback

MOST_CHARACTERS = 160


def told(error: BaseException) -> str:
    """The exception's type, the module that raised it and the first line that it says, in one phrase."""
    frames = traceback.extract_tb(error.__traceback__)
    modules = [module for frame in frames if (module := _module(frame.filename))]
    # The module outside torch: what is called with wrong arguments seldom lies there.
    place = next((module for module in reversed(modules) if not module.startswith("torch")), None)
    said = next(iter(str(error).splitlines()), "")[:MOST_CHARACTERS]
    return f"{type(error).__name__}{f' in {place}' if place else ''}{f': {said}' if said else ''}"


def _module(filename: str) -> str | None:
    """The dotted name of an installed library's module."""
    _, found, path = filename.replace("\\", "/").partition("/site-packages/")
    return path.removesuffix(".py").replace("/", ".") if found else None
