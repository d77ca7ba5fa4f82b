"""Short description of a library's exception, for callers who cannot read the log."""

from __future__ import annotations

import traceback

MOST_CHARACTERS = 160


def summary(error: BaseException) -> str:
    """Return one phrase: the exception's type, the module that raised it and the first line of its text.

    The module is the last one outside torch. The text is cut to `MOST_CHARACTERS`.
    """
    frames = traceback.extract_tb(error.__traceback__)
    modules = [module for frame in frames if (module := _module(frame.filename))]
    # A module outside torch: wrong arguments for torch seldom come from torch itself.
    place = next((module for module in reversed(modules) if not module.startswith("torch")), None)
    said = next(iter(str(error).splitlines()), "")[:MOST_CHARACTERS]
    return f"{type(error).__name__}{f' in {place}' if place else ''}{f': {said}' if said else ''}"


def _module(filename: str) -> str | None:
    """Return the dotted name of an installed library's module, from its file; None for other files."""
    _, found, path = filename.replace("\\", "/").partition("/site-packages/")
    return path.removesuffix(".py").replace("/", ".") if found else None
