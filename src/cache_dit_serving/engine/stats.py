"""`stats` of an answer."""

from __future__ import annotations

from collections.abc import Sequence

from cache_dit_serving.pipeline.protocol import DrawRecord
from cache_dit_serving.schemas.answers import ImageStats, Stats


def stats_of(records: Sequence[DrawRecord]) -> Stats:
    return Stats(cache_stats=[ImageStats(seed=record.seed, block_lists=record.stats) for record in records])
