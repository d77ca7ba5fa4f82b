"""The state of a generation, which its methods alone change."""

from __future__ import annotations

from typing import Any, cast

import pytest

from cache_dit_serving.errors import ClientGone, NotReady
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.schemas.answers import RequestWarning
from cache_dit_serving.schemas.jobs import JobPreview
from tests.support.records import FAST, call


def generation() -> Generation:
    return Generation("one", call(FAST, steps=8))


def test_every_listener_hears_of_the_start_of_each_step_and_of_each_preview() -> None:
    listened = generation()
    heard: list[tuple[str, int]] = []
    for name in ("follower", "stream"):
        listened.listen(lambda name=name: heard.append((name, listened.step)))  # type: ignore[misc]
    listened.begin()
    assert listened.ran
    listened.progress(1, 0)
    listened.show(JobPreview(step=1, steps=8, image=""), ())
    listened.progress(2, 1)
    assert heard == [(name, step) for step in (0, 1, 1, 2) for name in ("follower", "stream")]


def test_one_that_may_not_start_tells_nobody() -> None:
    elsewhere = generation()
    seen: list[float | None] = []
    elsewhere.listen(lambda: seen.append(None))

    def may_start() -> bool:
        seen.append(elsewhere.started)
        return False

    elsewhere.admit(cast(Any, None), may_start)
    assert not elsewhere.begin()
    assert not elsewhere.ran
    assert seen == [elsewhere.started], "the time of its start is known when it is to start"


@pytest.mark.parametrize(
    "name", ["started", "finished", "step", "cached_steps", "steps", "warnings", "cancelled", "stop_error", "waited_s"]
)
def test_nobody_else_writes_its_state(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(generation(), name, None)


def test_its_warnings_are_a_copy() -> None:
    warned = generation()
    warned.warnings.append(RequestWarning(param="seed", code="adjusted", message="not one of its own"))
    assert warned.warnings == []


def test_a_stop_is_the_callers_unless_the_server_gave_it_up() -> None:
    left, given_up = generation(), generation()
    left.cancel()
    given_up.give_up(NotReady("the server is shutting down", code="draining"))
    assert left.cancelled
    assert given_up.cancelled
    assert isinstance(left.stop_error, ClientGone)
    assert isinstance(given_up.stop_error, NotReady)


def test_who_waits_cannot_cancel_one_in_the_queue() -> None:
    queued = generation()
    queued.admit(cast(Any, None))
    assert not queued.result.cancel()
    queued.resolve([])
    assert queued.result.result(0) == []


def test_it_ends_once() -> None:
    refused, drawn = generation(), generation()
    refused.fail(NotReady("the server is shutting down", code="draining"))
    refused.resolve([])
    with pytest.raises(NotReady):
        refused.result.result(0)
    drawn.resolve([])
    drawn.fail(NotReady("the server is shutting down", code="draining"))
    assert drawn.result.result(0) == []
