"""Functions of libraries that are replaced: for the time of a call, or for one module that uses them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

Method = Callable[..., Any]
_INHERITED = object()


@contextmanager
def wrapped(owner: type | ModuleType, name: str, wrap: Callable[[Method], Method]) -> Iterator[None]:
    """Replace a method of a class and its instances, or a function of a module, during the body.

    Args:
        wrap: function that is given the method and returns its replacement.
    """
    own = vars(owner).get(name, _INHERITED)
    setattr(owner, name, wrap(getattr(owner, name)))
    try:
        yield
    finally:
        if own is _INHERITED:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def standing_in(module: ModuleType, **functions: Callable[..., Any]) -> Any:
    """Return a stand-in for a module, with other functions in the place of some, for one who imported the module."""
    return SimpleNamespace(**vars(module) | functions)
