"""Prompts of a search: a file of the user's, or the embedded model's own list."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from cache_dit_serving.errors import ConfigError
from cache_dit_serving.measure import prompts

UNSEEN = 1 / 3
"""Share of the prompts that the search never uses."""


def own_prompts() -> tuple[str, ...]:
    """Return the prompts that the embedded model was trained for."""
    return _lines(prompts.embedded())


def varied_prompts() -> tuple[str, ...]:
    """Return the 200 prompts for any model, those that `bench` sends."""
    return _lines(prompts.varied())


def prompts_of(file: Path) -> tuple[str, ...]:
    """Return the prompts of a text file, one a line; comments, empty lines and repeated prompts are left out.

    Raises:
        ConfigError: the file cannot be read, or has fewer than two prompts.
    """
    try:
        found = _lines(file.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--prompts: {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"--prompts: {file} is not a text file in UTF-8") from None
    if len(found) < 2:
        raise ConfigError(f"--prompts: {file} has {len(found)} prompts; write at least two lines, better thirty")
    return found


def usual_prompts(file: Path | None, *, embedded: bool) -> tuple[tuple[str, ...], str]:
    """Return the prompts of a file, or without one those of the model, with their origin in words.

    Raises:
        ConfigError: as :func:`prompts_of`.
    """
    if file is not None:
        return prompts_of(file), "the user's"
    if embedded:
        return own_prompts(), "the embedded model's own"
    return varied_prompts(), "the 200 of bench, none of the user's"


def split(prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the prompts of the search and the unseen ones, a third, by a draw that is the same each time."""
    shuffled = list(prompts)
    random.Random(0).shuffle(shuffled)
    unseen = max(1, round(len(prompts) * UNSEEN))
    return shuffled[unseen:], shuffled[:unseen]


def _lines(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"))
