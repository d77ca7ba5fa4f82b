"""Order of generations of several models, of which not all fit into memory at once: few switches, bounded waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, Self

from cache_dit_serving.jobs.generation import Generation


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
    """Bound on the time for which a generation whose model is not in memory is overtaken.

    By default twice the time of its switch: what waits for a switch waits no longer than the switch there and back
    would cost the others. That is the rule of the rented skis: at worst twice the least total.
    """

    def __init__(self, switch_after_s: float | None, now: Callable[[], float]) -> None:
        """
        Args:
            switch_after_s: seconds; None: twice as long as the switch takes.
            now: seconds.
        """
        self._switch_after_s = switch_after_s
        self._now = now
        self._since: dict[Generation, float] = {}
        """Time at which each generation was first overtaken."""

    def left_s(self, generation: Generation, switch_s: float) -> float:
        """Return the seconds for which others may still go before a generation."""
        most_s = 2 * switch_s if self._switch_after_s is None else self._switch_after_s
        since = self._since.get(generation)
        return most_s if since is None else most_s - (self._now() - since)

    def has_begun(self, generation: Generation) -> bool:
        """Return whether a generation has been overtaken."""
        return generation in self._since

    def overtaken(self, generation: Generation) -> None:
        """Take note that another one goes before a generation."""
        self._since.setdefault(generation, self._now())

    def forget(self, generation: Generation) -> None:
        """Forget a generation that waits no more."""
        self._since.pop(generation, None)


def arranged(
    fair: Sequence[Generation],
    seconds: Callable[[Generation], float],
    placement: Placement,
    patience: Patience,
) -> list[Turn]:
    """Return the order with few switches, and the switch before each.

    The first in the fair order is next, unless its model is not in memory: then the first one of the same priority
    whose model is goes before it, as long as the first one's patience lasts.

    Args:
        fair: generations that wait, in the order without regard to their models.
        seconds: expected seconds of a generation.
        placement: models in memory now.
    """
    if not any(map(placement.switch_s, fair)):
        return [Turn(generation, 0.0) for generation in fair]
    left, gone_s = list(fair), 0.0
    turns: list[Turn] = []
    since: dict[Generation, float] = {}
    """Seconds from now at which each generation that is overtaken was first; 0 for one that was before now."""
    while left:
        chosen = first = left[0]
        switch_s = placement.switch_s(first)
        if switch_s:
            begun_s = since.get(first, 0.0 if patience.has_begun(first) else gone_s)
            if patience.left_s(first, switch_s) > gone_s - begun_s:
                other = next((each for each in left[1:] if _may_overtake(each, first, placement)), None)
                if other is not None:
                    since[first] = begun_s
                    chosen, switch_s = other, 0.0
        left.remove(chosen)
        turns.append(Turn(chosen, switch_s))
        placement = placement.after(chosen)
        gone_s += switch_s + seconds(chosen)
    return turns


def _may_overtake(generation: Generation, first: Generation, placement: Placement) -> bool:
    return generation.priority == first.priority and not placement.switch_s(generation)
