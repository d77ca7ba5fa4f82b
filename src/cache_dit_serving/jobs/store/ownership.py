"""Conditions on the owners of jobs, and a take-over by them."""

from __future__ import annotations

import time

from sqlalchemy import ColumnElement, Connection, and_, or_, select, update

from cache_dit_serving.jobs.store.leases import Silent
from cache_dit_serving.jobs.store.tables import LIVE, JobRow, ServerRow

Conditions = tuple[ColumnElement[bool], ...]


def live_jobs_of(owner: str) -> Conditions:
    """Return the conditions of an owner's live jobs."""
    return JobRow.owner == owner, JobRow.state.in_(LIVE)


def free_jobs(connection: Connection, server: str, silent: Silent) -> Conditions:
    """Return the conditions of live jobs without a living owner.

    Args:
        server: name of the one that asks; its own jobs are not free.
        silent: servers that it takes for dead.
    """
    known = beats(connection)
    dead = [each for each, beat in silent.beats.items() if known.get(each) == beat]
    whose: ColumnElement[bool] = JobRow.owner.in_(dead)
    if silent.settled:
        whose = or_(whose, and_(JobRow.owner.not_in(known), JobRow.owned_until < time.time()))
    return JobRow.state.in_(LIVE), or_(JobRow.owner.is_(None), and_(JobRow.owner != server, whose))


def dead_servers(silent: Silent) -> ColumnElement[bool]:
    """Return the condition of servers that are silent still."""
    return or_(*(and_(ServerRow.id == each, ServerRow.beats == beat) for each, beat in silent.beats.items()))


def take(connection: Connection, job: str, owner: str, until: float, free: Conditions) -> bool:
    """Take over a job; return whether it was free."""
    mine = update(JobRow).where(JobRow.id == job, *free).values(owner=owner, owned_until=until)
    return connection.execute(mine).rowcount > 0


def beats(connection: Connection) -> dict[str, int]:
    """Return the beats of all servers, by their names."""
    return {row.id: row.beats for row in connection.execute(select(ServerRow.id, ServerRow.beats))}
