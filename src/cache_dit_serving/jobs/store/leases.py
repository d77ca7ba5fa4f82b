"""Servers that live and that are dead, as one of them sees it by the beats of all in the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

LATE_S = 2.5
"""Seconds after which a beat of one's own is late: others may not have been able to write either."""


@dataclass(frozen=True)
class Silent:
    """Servers that count as dead."""

    beats: Mapping[str, int] = field(default_factory=dict)
    """The last beat of each."""
    settled: bool = False
    """True once every living server would have been seen: one that is in no table of servers is dead, too."""


class Leases:
    """Counts how long each server is silent, only while the database takes the beats of this one.

    No clock is compared with another machine's. A database that is away, a process that was suspended and a clock that
    jumps so add nothing to the silence of others: their first beat comes before anybody takes their jobs.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._heard: dict[str, tuple[int, float]] = {}
        """Last beat of each server, and the seconds since then."""
        self._last: float | None = None
        self._watched_s = 0.0
        self._on_time_s = 0.0

    def hear(self, beats: Mapping[str, int], now: float) -> None:
        """Take note of the beats of all servers, read together with writing one's own.

        Args:
            now: monotonic seconds.
        """
        elapsed = self._lease_s if self._last is None else now - self._last
        self._last = now
        self._on_time_s = self._on_time_s + elapsed if elapsed < LATE_S else 0.0
        if elapsed >= self._lease_s:
            self._heard, self._watched_s = {}, 0.0
        # A gap counts as a third of a lease at most: the rest of the lease is for the others' next beats.
        counted = min(elapsed, self._lease_s / 3)
        self._watched_s += counted if self._heard else 0.0
        self._heard = {server: (beat, self._silence(server, beat, counted)) for server, beat in beats.items()}

    def _silence(self, server: str, beat: int, counted: float) -> float:
        before, silence = self._heard.get(server, (None, 0.0))
        return silence + counted if before == beat else 0.0

    def silent(self) -> Silent:
        """Return the servers whose lease is over."""
        over = {server: beat for server, (beat, silence) in self._heard.items() if silence >= self._lease_s}
        return Silent(over, self._watched_s >= self._lease_s)

    def on_time_s(self) -> float:
        """Return the seconds for which this server's own beats came on time."""
        return self._on_time_s
