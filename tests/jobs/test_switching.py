"""Who goes before whom among several models, and how long."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.queue import Queue
from cache_dit_serving.jobs.switching import Patience, arranged

SECONDS = 1.0
"""Duration of each generation."""


class Model:
    """A model by its name, and the seconds until it is in memory."""

    def __init__(self, name: str, switch_s: float = 5.0) -> None:
        self.name = name
        self.switch_s = switch_s


class Memory(NamedTuple):
    """A memory that one model fits into, or more."""

    awake: tuple[Any, ...]

    def switch_s(self, generation: Generation) -> float:
        return 0.0 if generation.model in self.awake else cast(Any, generation.model).switch_s

    def after(self, generation: Generation) -> Memory:
        others = [each for each in self.awake if each is not generation.model]
        return Memory((*others, generation.model)[-len(self.awake) :])


A, B, C = (Model(name) for name in "abc")
MODELS = {model.name: model for model in (A, B, C)}


def generation(name: str, priority: int = 0, caller: str = "", model: Any = None) -> Generation:
    """One of the model that its name begins with."""
    each = Generation(name, cast(Any, SimpleNamespace(warnings=(), to_resize=())), priority=priority, caller=caller)
    each.admit(cast(Any, model or MODELS[name[0]]))
    return each


def order(
    names: str,
    awake: tuple[Any, ...] = (A,),
    patience: Patience | None = None,
    priorities: dict[str, int] | None = None,
) -> str:
    """The order of generations that wait, with a bar before each that needs a switch."""
    fair = [generation(name, (priorities or {}).get(name, 0)) for name in names.split()]
    patience = patience or Patience(None, lambda: 0.0)
    turns = arranged(fair, lambda each: SECONDS, Memory(awake), patience)
    return " ".join(("|" if turn.switch_s else "") + turn.generation.id for turn in turns)


def patience(switch_after_s: float | None) -> Patience:
    return Patience(switch_after_s, lambda: 0.0)


def test_one_model_in_memory_leaves_the_order_as_it_is() -> None:
    assert order("a1 a2 a3") == "a1 a2 a3"


def test_all_in_memory_leave_the_order_as_it_is() -> None:
    assert order("b1 a1 c1 b2", awake=(A, B, C)) == "b1 a1 c1 b2"


def test_those_of_the_model_in_memory_go_first_and_neighbours_share_a_switch() -> None:
    assert order("b1 a1 b2 c1 a2 b3") == "a1 a2 |b1 b2 b3 |c1"


def test_without_patience_first_comes_first() -> None:
    assert order("b1 a1 b2", patience=patience(0)) == "|b1 |a1 |b2"


def test_the_first_is_overtaken_for_its_patience_and_no_longer() -> None:
    assert order("b1 a1 a2 a3 a4 b2", patience=patience(2)) == "a1 a2 |b1 b2 |a3 a4"


def test_patience_goes_on_from_when_the_first_was_overtaken() -> None:
    now = 100.0
    waiting = Patience(3, lambda: now)
    fair = [generation(name) for name in ("b1", "a1", "a2", "a3", "a4")]

    def ids() -> list[str]:
        return [turn.generation.id for turn in arranged(fair, lambda each: SECONDS, Memory((A,)), waiting)]

    assert ids() == ["a1", "a2", "a3", "b1", "a4"]
    waiting.overtaken(fair[0])
    now += 2
    assert ids() == ["a1", "b1", "a2", "a3", "a4"], "overtaken since two seconds"
    waiting.overtaken(fair[0])
    now += 1
    assert ids() == ["b1", "a1", "a2", "a3", "a4"], "a second note does not begin anew"
    waiting.forget(fair[0])
    assert not waiting.has_begun(fair[0])


def test_patience_left_out_is_twice_the_switch_or_as_long_as_all_that_wait() -> None:
    waiting = patience(None)
    first = generation("b1")
    assert waiting.left_s(first, 5.0) == 10
    assert waiting.left_s(first, 5.0, waiting_s=4.0) == 10
    assert waiting.left_s(first, 5.0, waiting_s=30.0) == 30
    assert patience(7).left_s(first, 5.0, waiting_s=30.0) == 7


def test_a_long_queue_has_a_switch_for_each_model_not_for_each_request() -> None:
    names = " ".join(f"{model}{number}" for number in range(50) for model in "bac")
    assert order(names).count("|") == 2


def test_none_overtakes_one_of_greater_priority() -> None:
    assert order("b1 b2 a1 a2", priorities={"b1": 1}) == "|b1 b2 |a1 a2"
    assert order("b1 a1 b2 a2", priorities={"b1": 2, "a1": 2, "b2": 1, "a2": 1}) == "a1 |b1 b2 |a2"


def test_a_thousand_that_wait_are_arranged_at_once() -> None:
    fair = [generation(f"b{number}") for number in range(500)] + [generation(f"a{number}") for number in range(500)]
    looks = 0

    class Counting(Memory):
        def switch_s(self, generation: Generation) -> float:
            nonlocal looks
            looks += 1
            return super().switch_s(generation)

        def after(self, generation: Generation) -> Counting:
            return Counting(super().after(generation).awake)

    turns = list(arranged(fair, lambda each: SECONDS, Counting((A,)), patience(None)))
    assert len(turns) == 1000
    assert looks < 5000, "each looks at the first one of each model"


class Served:
    """A queue with a clock and the memory of its server."""

    def __init__(self, awake: Any, switch_after_s: float | None = None) -> None:
        self.now = 0.0
        self.memory = Memory((awake,))
        self.queue = Queue(
            "arrival",
            lambda generation: SECONDS,
            lambda: self.now,
            placement=lambda: self.memory,
            switch_after_s=switch_after_s,
        )

    def run(self) -> str:
        each = self.queue.next()
        self.now += self.memory.switch_s(each) + SECONDS
        self.memory = self.memory.after(each)
        return each.id


def test_one_is_served_though_requests_for_the_model_in_memory_keep_coming() -> None:
    served = Served(A)
    served.queue.add(generation("b1"))
    ran: list[str] = []
    while "b1" not in ran:
        served.queue.add(generation(f"a{len(ran)}"))
        ran.append(served.run())
    assert len(ran) == 11, "ten of a second, twice the switch, and it"


def test_the_caller_of_a_switch_is_charged_it() -> None:
    served = Served(A, switch_after_s=0)
    for name, caller in (("b1", "switching"), ("a1", "other"), ("b2", "switching"), ("a2", "other"), ("a3", "other")):
        served.queue.add(generation(name, caller=caller, model=B if name == "b1" else A))
    first = served.run()
    assert first == "b1"
    # The switch to b took five seconds and the generation one: the other caller's three take less, switch aside.
    served.memory = Memory((A,))
    assert [served.run() for _ in range(4)] == ["a1", "a2", "a3", "b2"]


def test_one_that_is_taken_out_has_new_patience_when_it_comes_again() -> None:
    served = Served(A, switch_after_s=2)
    first = generation("b1")
    served.queue.add(first)
    for number in range(4):
        served.queue.add(generation(f"a{number}"))
    assert served.run() == "a0"
    served.queue.remove(first)
    served.queue.add(first)
    served.queue.set_priority(first, 1)
    assert served.run() == "b1"


def test_an_order_is_fast_enough_for_a_thousand() -> None:
    served = Served(A)
    for number in range(1000):
        served.queue.add(generation(f"{'abc'[number % 3]}{number}"))
    began = time.perf_counter()
    served.queue.next()
    assert time.perf_counter() - began < 2
