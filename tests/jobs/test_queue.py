"""Who is next."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, cast

from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.queue import Order, Queue


def queue(order: Order = "arrival") -> Queue:
    """One whose clock goes on by a second with each that comes."""
    seconds = itertools.count()
    return Queue(order, lambda generation: cast(Any, generation.planned).seconds, lambda: float(next(seconds)))


def generation(name: str, seconds: float | None = 1.0, caller: str = "", priority: int = 0) -> Generation:
    call = SimpleNamespace(seconds=seconds, warnings=(), to_resize=())
    return Generation(name, cast(Any, call), priority=priority, caller=caller)


def drained(waiting: Queue) -> str:
    """The names of all in their order, which each had told before."""
    names = ""
    while waiting:
        summary = [each.id for each in waiting]
        names += waiting.next().id
        assert summary[0] == names[-1]
    return names


def test_first_come_first_served() -> None:
    waiting = queue()
    generations = [generation(name) for name in "abcd"]
    for each in generations:
        waiting.add(each)
    assert "".join(each.id for each in waiting) == "abcd"
    waiting.remove(generations[1])
    assert generations[1] not in waiting
    assert generations[2] in waiting
    assert len(waiting) == 3
    assert drained(waiting) == "acd"


def test_a_greater_priority_goes_first() -> None:
    waiting = queue()
    for name, priority in zip("abcde", (0, 2, 1, 2, 0), strict=True):
        waiting.add(generation(name, priority=priority))
    assert drained(waiting) == "bdcae"


def test_what_waits_moves_to_the_place_of_another_priority() -> None:
    waiting = queue()
    a, b, c, d = (generation(name, priority=priority) for name, priority in zip("abcd", (0, 0, 2, 0), strict=True))
    for each in (a, b, c, d):
        waiting.add(each)
    assert "".join(each.id for each in waiting) == "cabd"
    waiting.set_priority(d, 3)
    assert "".join(each.id for each in waiting) == "dcab"
    waiting.set_priority(c, 0)  # it goes by when it came again
    assert drained(waiting) == "dabc"


def test_each_caller_has_a_share() -> None:
    waiting = queue()
    for name in "abcdef":
        waiting.add(generation(name, caller="many"))
    waiting.next()
    for name in "xy":
        waiting.add(generation(name, caller="few"))
    # Who comes does not have what others had before made up for.
    assert drained(waiting) == "bxcydef"


def test_a_share_is_of_seconds_and_not_of_requests() -> None:
    waiting = queue()
    for name in "LM":
        waiting.add(generation(name, seconds=4.0, caller="long"))
    for name in "abcdefgh":
        waiting.add(generation(name, seconds=1.0, caller="short"))
    assert drained(waiting) == "LabcdMefgh"


def test_one_caller_does_not_take_every_place() -> None:
    waiting = queue()
    admitted = {"many": 0, "few": 0, "late": 0}

    def ask(caller: str, times: int) -> None:
        for _ in range(times):
            if waiting.room_for(caller, 32):
                waiting.add(generation("x", caller=caller))
                admitted[caller] += 1

    ask("many", 100)
    ask("few", 100)
    ask("many", 100)
    ask("late", 1)
    assert admitted == {"many": 24, "few": 6, "late": 1}
    # A place that becomes free is for those who have fewer than their share.
    waiting.next()
    assert not waiting.room_for("many", 32)
    assert waiting.room_for("late", 32)


def test_the_last_place_is_for_a_caller_without_one() -> None:
    waiting = queue()
    assert waiting.room_for("many", 1)
    waiting.add(generation("a", caller="many"))
    assert not waiting.room_for("many", 2)
    assert waiting.room_for("few", 2)
    waiting.add(generation("b", caller="few"))
    assert not waiting.room_for("late", 2)


def test_callers_without_a_name_have_all_places() -> None:
    waiting = queue()
    for _ in range(4):
        assert waiting.room_for("", 4)
        waiting.add(generation("a"))
    assert not waiting.room_for("", 4)


def test_nobody_saves_up_by_staying_away() -> None:
    waiting = queue()
    for name in "abcd":
        waiting.add(generation(name, caller="steady"))
    waiting.add(generation("x", caller="rare"))
    assert [waiting.next().id for _ in range(4)] == ["a", "x", "b", "c"]
    for name in "yz":
        waiting.add(generation(name, caller="rare"))
    waiting.add(generation("e", caller="steady"))
    assert drained(waiting) == "dyze"


def test_the_shortest_first_and_none_for_ever_behind() -> None:
    waiting = queue("shortest")
    waiting.add(generation("L", seconds=1.0))
    waiting.add(generation("a", seconds=0.1))
    waiting.add(generation("b", seconds=0.2))
    assert "".join(each.id for each in waiting) == "abL"
    for name in "cdefghijklmn":
        waiting.add(generation(name, seconds=0.1))
    assert drained(waiting) == "abcdefghLijklmn"


def test_what_nothing_is_known_of_counts_as_something() -> None:
    waiting = queue("shortest")
    waiting.add(generation("a", seconds=None))
    waiting.add(generation("b", seconds=30.0))
    assert drained(waiting) == "ab"


def test_all_are_taken_out_in_their_order() -> None:
    waiting = queue()
    for name, priority in (("a", 0), ("b", 1)):
        waiting.add(generation(name, priority=priority))
    assert [each.id for each in waiting.clear()] == ["b", "a"]
    assert len(waiting) == 0
    waiting.add(generation("c"))
    assert drained(waiting) == "c"
