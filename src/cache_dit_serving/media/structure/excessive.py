"""The refusal of a file that claims too much."""

from __future__ import annotations


class Excessive(Exception):
    """More parts than a file of this kind needs; its text completes a sentence that begins with the field's name."""


def at_most(limit: int, count: int, what: str) -> None:
    """
    Raises:
        Excessive: `count` is above `limit`.
    """
    if count > limit:
        raise Excessive(f"holds more than {limit:,} {what}")
