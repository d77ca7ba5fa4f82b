"""Servers that tests share although some of these end them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from tests.support.server import START_S, Server, ready


@contextmanager
def renewed(
    begin: Callable[[], AbstractContextManager[Server]],
    is_ready: Callable[[Server], object] = ready,
    within_s: float = START_S,
) -> Iterator[Callable[[], Server]]:
    """A function that returns a server once it is ready; another one after a test has ended it.

    Args:
        begin: starts one.
        within_s: patience with a start, seconds.
    """
    at_hand: list[Server] = []
    with ExitStack() as stack:

        def current() -> Server:
            if not at_hand or at_hand[0].process.poll() is not None:
                at_hand[:] = [stack.enter_context(begin())]
            at_hand[0].wait_for(lambda server: bool(is_ready(server)), within_s)
            return at_hand[0]

        yield current
