"""Senders of requests, and what each may ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from cache_dit_serving.config.keys import Scope


@dataclass(frozen=True)
class Caller:
    """Sender of requests: the owner of an API key, or anyone where there are none."""

    name: str
    """Name of the key; empty where there are no keys."""
    scopes: tuple[Scope, ...]
    max_live: int | None = None
    """Maximum generations that wait or run at a time; None: no limit."""

    @property
    def admin(self) -> bool:
        return "admin" in self.scopes

    def owns(self, owner: str) -> bool:
        """Return whether this caller may see and change the jobs of an owner."""
        return self.admin or owner == self.name


SCOPES: tuple[Scope, ...] = get_args(Scope)
ANYONE = Caller("", SCOPES)
"""Caller of a server without keys."""
NOBODY = Caller("", ())
"""Caller without a key on a route that is open without one."""
