"""Order of generations of several models, of which not all fit into memory at once: few switches, bounded waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol, Self

from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.served_model import ServedModel


class Placement(Protocol):
    """Models in memory at one time, now or as the queue goes on."""

    def switch_s(self, generation: Generation) -> float:
        """Return the seconds that the model of a generation takes until it can draw; 0 for one in memory."""
        ...

    def after(self, generation: Generation) -> Self:
        """Return the placement once a generation has run: its model is in memory, others may have given way."""
        ...


class Turn(NamedTuple):
    """A generation in the order in which the pipeline takes them."""

    generation: Generation
    switch_s: float
    """Seconds that its model takes before, until it can draw."""


class Patience:
    """Bound on the time for which a generation whose model is not in memory is overtaken, once it is the first.

    By default twice the time of its switch: what waits for a switch waits no longer than the switch there and back
    would cost the others. That is the rule of the rented skis: at worst twice the least total. In a long queue as long
    as all that wait take, if that is more: a bound that stays the same would cost so many switches that the queue grows
    for ever.
    """

    def __init__(self, switch_after_s: float | None, now: Callable[[], float]) -> None:
        """
        Args:
            switch_after_s: seconds; None: twice as long as the switch takes, or as all that wait.
            now: seconds.
        """
        self._switch_after_s = switch_after_s
        self._now = now
        self._since: dict[Generation, float] = {}
        """Time at which each generation was first overtaken."""

    def left_s(self, generation: Generation, switch_s: float, waiting_s: float = 0.0) -> float:
        """Return the seconds for which others may still go before a generation.

        Args:
            waiting_s: seconds that all which wait with its priority take.
        """
        most_s = max(2 * switch_s, waiting_s) if self._switch_after_s is None else self._switch_after_s
        since = self._since.get(generation)
        return most_s if since is None else most_s - (self._now() - since)

    def has_begun(self, generation: Generation) -> bool:
        """Return whether a generation has been overtaken."""
        return generation in self._since

    def overtaken(self, generation: Generation) -> None:
        """Take note that another one goes before a generation that is the first."""
        self._since.setdefault(generation, self._now())

    def forget(self, generation: Generation) -> None:
        """Forget a generation that waits no more."""
        self._since.pop(generation, None)


def arranged(
    fair: Sequence[Generation],
    seconds: Callable[[Generation], float],
    placement: Placement,
    patience: Patience,
) -> Iterator[Turn]:
    """Yield the order with few switches, and the switch before each.

    The first in the fair order is next, unless its model is not in memory: then the first one of the same priority
    whose model is goes before it, as long as the first one's patience lasts. The patience of those behind the first
    begins when they are first. Were it to begin earlier, it would be over for all of them in a long queue, and each
    would have its switch.

    Args:
        fair: generations that wait, in the order without regard to their models.
        seconds: expected seconds of a generation.
        placement: models in memory now.
    """
    if not any(map(placement.switch_s, fair)):
        yield from (Turn(generation, 0.0) for generation in fair)
        return
    gone_s = 0.0
    since: dict[Generation, float] = {}
    """Seconds from now at which each generation that is overtaken was first; 0 for one that was before now."""
    for _, group in groupby(fair, key=lambda each: each.priority):
        equals = list(group)
        waiting_s = sum(map(seconds, equals))
        # Of each model only the first one can be next: a long queue is not searched for each of its places.
        lines: dict[ServedModel, deque[tuple[int, Generation]]] = {}
        for place, generation in enumerate(equals):
            lines.setdefault(generation.model, deque()).append((place, generation))
        while lines:
            fronts = sorted(line[0] for line in lines.values())
            _, chosen = fronts[0]
            if first_s := placement.switch_s(first := chosen):
                begun_s = since.get(first, 0.0 if patience.has_begun(first) else gone_s)
                if patience.left_s(first, first_s, waiting_s) > gone_s - begun_s:
                    chosen = next((each for _, each in fronts if not placement.switch_s(each)), first)
                    if chosen is not first:
                        since[first] = begun_s
            turn = Turn(chosen, placement.switch_s(chosen))
            yield turn
            line = lines[chosen.model]
            line.popleft()
            if not line:
                del lines[chosen.model]
            placement = placement.after(chosen)
            waiting_s -= seconds(chosen)
            gone_s += turn.switch_s + seconds(chosen)
