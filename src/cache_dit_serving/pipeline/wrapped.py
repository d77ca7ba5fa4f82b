"""Methods of library classes that are wrapped for the time of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Method = Callable[..., Any]
_INHERITED = object()


@contextmanager
def wrapped(cls: type, name: str, wrap: Callable[[Method], Method]) -> Iterator[None]:
    """Replace a method of a class, and of its instances, during the body.

    Args:
        wrap: function that is given the method and returns its replacement.
    """
    own = vars(cls).get(name, _INHERITED)
    setattr(cls, name, wrap(getattr(cls, name)))
    try:
        yield
    finally:
        if own is _INHERITED:
            delattr(cls, name)
        else:
            setattr(cls, name, own)
