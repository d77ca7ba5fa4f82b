"""Facts about a request that :class:`envelope.Envelope` establishes, for everything behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel
from starlette.types import Scope

from cache_dit_serving.api.body import CheckedBody
from cache_dit_serving.api.operation import Operation
from cache_dit_serving.engine.caller import NOBODY, Caller

M = TypeVar("M", bound=BaseModel)

_KEY = "request"
"""Key of the state in starlette's `scope["state"]`."""


@dataclass(frozen=True)
class RequestState:
    """Request as far as it has been checked."""

    id: str
    operation: Operation | None = None
    """Row of the table; None: it has none, or none was looked for yet."""
    caller: Caller = NOBODY
    lenient: bool = False
    """True if fields that the model cannot honour are ignored and reported."""
    body: CheckedBody | None = None
    """None: the row takes none, or it has not been found without fault."""

    def asked(self, model: type[M]) -> M:
        """Return the body's content, which is of the model that the row names."""
        assert self.body is not None
        assert isinstance(self.body.content, model)
        return self.body.content

    def put_into(self, scope: Scope) -> None:
        """Make this the state of a request, and of all copies of its scope."""
        scope.setdefault("state", {})[_KEY] = self


def state_of(scope: Scope) -> RequestState:
    """Return the state of a request that came through the envelope."""
    state = scope["state"][_KEY]
    assert isinstance(state, RequestState)
    return state
