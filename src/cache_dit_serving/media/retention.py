"""Which outputs are kept: none older than so long, and no more than so many bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from cache_dit_serving.media.outputs import Listed

Reason = Literal["age", "bytes"]
YOUNG_S = 60.0
"""An output as young may be of a job whose end is not written yet: it is kept whatever its size."""


class Due(NamedTuple):
    """An output that is to go."""

    output: Listed
    reason: Reason


def due_of(outputs: Iterable[Listed], now: float, keep_s: float | None, max_bytes: int | None) -> list[Due]:
    """Those that are to go, the oldest first.

    Args:
        now: seconds since the epoch.
        keep_s: None: for ever.
        max_bytes: of all that are kept; None: any number.
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
