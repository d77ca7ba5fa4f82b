"""Values that go into the database of jobs and come out of it. Importing them imports no SQLAlchemy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cache_dit_serving.schemas.jobs import JobState

BATCH = 100
"""Jobs that are forgotten in one transaction."""
Uploads = Sequence[str | bytes]


class KeyTaken(Exception):
    """There is a job of the same Idempotency-Key."""


@dataclass(frozen=True)
class Page:
    """Choice of jobs of a list."""

    limit: int
    after: str | None = None
    """Id of the job that they come after."""
    state: JobState | None = None
    prefix: str = ""
    """Prefix of their ids."""
    ascending: bool = False
    """True for the oldest first, in place of the latest."""


class Wanted(NamedTuple):
    """Wishes of callers for a live job, which any server writes and its owner carries out."""

    cancelled: bool
    """True if the owner is to cancel it."""
    priority: int
    """Priority with which it is to wait."""


class Ended(NamedTuple):
    """A job that has ended."""

    id: str
    files: tuple[str, ...]
    """Its outputs, named from the root of all."""


@dataclass(frozen=True)
class Entry:
    """One piece of evidence."""

    kind: str
    """Kind of its content."""
    environment: str
    """Hash of the versions and settings under which it was found."""
    body: str
    """Content, JSON."""
    server: str
    """Server that wrote it."""
    number: int = 0
    """Place among all rows; 0 before it is written."""


def summary(error: BaseException) -> str:
    """Return a database's message of an error, in one line and without the statement."""
    return str(getattr(error, "orig", None) or error).splitlines()[0]
