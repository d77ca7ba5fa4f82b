"""Retention of outputs: a maximum age and a maximum total size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from cache_dit_serving.media.outputs import Listed

Reason = Literal["age", "bytes"]
YOUNG_S = 60.0
"""Minimum age for deletion, seconds. The job of a younger output may not have been recorded as finished yet."""


class Due(NamedTuple):
    """An output to delete, and the limit it exceeds."""

    output: Listed
    reason: Reason


def due_of(outputs: Iterable[Listed], now: float, keep_s: float | None, max_bytes: int | None) -> list[Due]:
    """Return the outputs to delete, oldest first. Outputs younger than `YOUNG_S` are kept.

    Args:
        now: seconds since the epoch.
        keep_s: maximum age, seconds; None: unlimited.
        max_bytes: maximum total size of the kept outputs, bytes; None: unlimited.
    """
    oldest_first = sorted(outputs, key=lambda output: output.modified)
    held = sum(output.bytes for output in oldest_first)
    due = []
    for output in oldest_first:
        if now - output.modified < YOUNG_S:
            break
        if keep_s is not None and now - output.modified > keep_s:
            due.append(Due(output, "age"))
        elif max_bytes is not None and held > max_bytes:
            due.append(Due(output, "bytes"))
        else:
            break
        held -= output.bytes
    return due
