"""Senders of requests, and what each may ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from cache_dit_serving.config.keys import Scope


@dataclass(frozen=True)
class Caller:
    """Whoever sends a request."""

    name: str
    """Empty where there are no keys."""
    scopes: tuple[Scope, ...]
    max_live: int | None = None
    """Generations that wait or run at a time."""

    @property
    def admin(self) -> bool:
        return "admin" in self.scopes

    def owns(self, owner: str) -> bool:
        """Whether what an owner has is for this caller too."""
        return self.admin or owner == self.name


SCOPES: tuple[Scope, ...] = get_args(Scope)
ANYONE = Caller("", SCOPES)
NOBODY = Caller("", ())
"""Who sent no key where that is allowed."""
