"""Order of the generations that wait.

Greater priorities first. Among equals the caller that has had least of the pipeline lately, so that one who sends a
hundred does not make another wait for all of them. Of one caller's, first come first served, or the shortest first.
Of several models, those in memory go before the others for a bounded time (`switching.py`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.switching import Patience, Placement, Turn, arranged

Order = Literal["arrival", "shortest"]
OVERTAKEN = 10.0
"""Time for which shorter ones that come later may go before, in durations of the one that waits; shortest first only.

Without a bound a long one waits for ever where short ones keep coming.
"""
SHARE = 3
"""Places that a caller may hold for each one that is free."""
UNKNOWN_S = 1.0
"""Duration of a generation of which nothing is known."""


class _Waiting(NamedTuple):
    seconds: float
    """Expected seconds, by the estimate when it came."""
    rank: float
    """Monotonic seconds; the least among its caller's of the same priority is next."""


class Queue:
    """Generations that wait; for one thread at a time."""

    def __init__(
        self,
        order: Order,
        estimate: Callable[[Generation], float | None],
        now: Callable[[], float] = time.monotonic,
        *,
        placement: Callable[[], Placement] | None = None,
        switch_after_s: float | None = None,
    ) -> None:
        """
        Args:
            estimate: seconds that a generation is known to take.
            now: seconds.
            placement: returns the models in memory; None: there is one model.
            switch_after_s: as of :class:`Patience`.
        """
        self._now = now
        self._placement = placement
        self._patience = Patience(switch_after_s, now)
        self._order = order
        self._estimate = estimate
        self._waiting: dict[Generation, _Waiting] = {}
        self._had: dict[str, float] = {}
        """Seconds of the pipeline that each caller here had; one that comes begins with the least of them."""
        self._running: str | None = None
        """Caller of the one that runs."""
        self._fair: list[Generation] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Generation]:
        """Iterate over all, the next one first."""
        return iter([turn.generation for turn in self.turns()])

    def turns(self) -> Sequence[Turn]:
        """Return all, the next one first, with the seconds until the model of each can draw."""
        return list(self._turns())

    def _turns(self) -> Iterator[Turn]:
        fair = self._in_fair_order()
        if self._placement is None:
            return (Turn(generation, 0.0) for generation in fair)
        return arranged(fair, lambda each: self._waiting[each].seconds, self._placement(), self._patience)

    def _in_fair_order(self) -> Sequence[Generation]:
        """Return all, in the order without regard to their models."""
        if self._fair is None:
            self._fair = list(self._in_order())
        return self._fair

    @property
    def unordered(self) -> list[Generation]:
        """All, as they came."""
        return list(self._waiting)

    def __contains__(self, generation: Generation) -> bool:
        return generation in self._waiting

    def room_for(self, caller: str, places: int) -> bool:
        """Return whether a caller may have one more of the queue's `places`.

        Callers share them by a dynamic threshold (Choudhury and Hahne, 1998, for buffers of switches): each may hold up
        to :data:`SHARE` times as many as are free. One caller alone gets three quarters. However often it asks, a
        caller without a place finds one. Callers without a name are not told apart.
        """
        free = places - len(self._waiting)
        own = sum(generation.caller == caller for generation in self._waiting)
        if not caller or not own:
            return free > 0
        return free > 1 and own < SHARE * free

    def add(self, generation: Generation) -> None:
        """Let a generation wait."""
        seconds = self._estimate(generation)
        if seconds is None:
            seconds = UNKNOWN_S
        overtaken_s = OVERTAKEN * seconds if self._order == "shortest" else 0.0
        self._waiting[generation] = _Waiting(seconds, self._now() + overtaken_s)
        self._had.setdefault(generation.caller, min(self._had.values(), default=0.0))
        self._fair = None

    def remove(self, generation: Generation) -> None:
        """Take a generation out, which is not to be run."""
        del self._waiting[generation]
        self._patience.forget(generation)
        self._forget_callers()

    def set_priority(self, generation: Generation, priority: int) -> None:
        """Change the priority of a generation that waits."""
        assert generation in self._waiting, "only what waits has a place"
        generation.set_priority(priority)
        self._fair = None

    def next(self) -> Generation:
        """Take the next one out, to be run. Its caller had the pipeline for the switch to its model too."""
        generation, switch_s = next(self._turns())
        if generation is not (first := self._in_fair_order()[0]):
            self._patience.overtaken(first)
        self._patience.forget(generation)
        self._running = generation.caller
        self._had[generation.caller] += self._waiting.pop(generation).seconds + switch_s
        self._forget_callers()
        return generation

    def clear(self) -> list[Generation]:
        """Take all out, the next one first."""
        left = list(self)
        for generation in left:
            self._patience.forget(generation)
        self._waiting.clear()
        self._running = None
        self._forget_callers()
        return left

    def _forget_callers(self) -> None:
        # Nobody saves up for later by staying away.
        here = {generation.caller for generation in self._waiting} | {self._running}
        self._had = {caller: seconds for caller, seconds in self._had.items() if caller in here}
        self._fair = None

    def _in_order(self) -> Iterator[Generation]:
        had = dict(self._had)
        equals: defaultdict[int, defaultdict[str, list[Generation]]] = defaultdict(lambda: defaultdict(list))
        for generation in self._waiting:
            equals[generation.priority][generation.caller].append(generation)
        for _, callers in sorted(equals.items(), reverse=True):
            for own in callers.values():
                own.sort(key=self._rank)
                own.reverse()  # the next is the last; not by sort's own reverse, which leaves equals as they came
            while callers:
                caller = min(callers, key=lambda caller: (had[caller], self._rank(callers[caller][-1])))
                generation = callers[caller].pop()
                if not callers[caller]:
                    del callers[caller]
                had[caller] += self._waiting[generation].seconds
                yield generation

    def _rank(self, generation: Generation) -> float:
        return self._waiting[generation].rank
