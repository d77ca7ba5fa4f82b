"""Requests a minute and live generations of callers, over all servers of one database."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from sqlalchemy import ColumnElement, Connection, Engine, and_, case, delete, func, literal, select
from sqlalchemy.dialects import postgresql, sqlite

from cache_dit_serving.jobs.store.engine import BRIEF_WAIT_S
from cache_dit_serving.jobs.store.leases import Silent
from cache_dit_serving.jobs.store.tables import LivePlaceRow, RateRow, ServerRow

ROUNDING_S = 0.001
"""Seconds by which a request may come too early: sums of floats, and SQLite's clock has milliseconds."""
AHEAD_S = 10.0
"""Seconds by which a caller's rate may lie further ahead than its limit allows. More is a clock that was set back."""
UNIX_EPOCH = 2440587.5
"""Julian day of the Unix epoch."""
DAY_S = 86400.0


class CallerLimits:
    """Rates and places of callers, for any thread. The database's clock is the only one that counts."""

    def __init__(self, engine: Engine) -> None:
        # Counts are promised to nobody: a crash of the database may lose the last ones.
        self._engine = engine.execution_options(writes=True, wait_s=BRIEF_WAIT_S, durable=False)
        self._postgresql = engine.dialect.name == "postgresql"

    def take(self, caller: str, per_minute: float) -> float:
        """Count a request; return the seconds until the caller may send one, 0 where it may now.

        The rate is a virtual scheduling algorithm (GCRA, ITU-T I.371): one time for each caller, at which all that it
        has sent would be due at an even pace. It admits as a bucket does that holds a minute's requests, at least one.

        Raises:
            SQLAlchemyError: the database does not answer.
        """
        interval, burst = 60 / per_minute, 60 / per_minute * max(1.0, per_minute)
        now = self._now()
        is_ahead = and_(RateRow.due > now, RateRow.due < now + burst + AHEAD_S)
        due = case((is_ahead, RateRow.due), else_=now)
        early = due - now - (burst - interval)
        add = self._insert(RateRow).values(caller=caller, due=now + interval)
        one_more = add.on_conflict_do_update(
            index_elements=[RateRow.caller], set_={"due": due + interval}, where=early <= ROUNDING_S
        )
        with self._engine.begin() as connection:
            if connection.scalar(one_more.returning(RateRow.due)) is not None:
                return 0.0
            wait_s = connection.scalar(select(early).where(RateRow.caller == caller))
        return max(ROUNDING_S, wait_s or 0.0)

    def begin(self, place: str, caller: str, server: str, most: int | None, silent: Silent) -> tuple[bool, int]:
        """Count a live generation, unless its caller has `most` others.

        Args:
            place: its name. One that another server has becomes this server's.
            server: the one that has it in its queue.
            silent: servers that count as dead, whose places are free.

        Returns:
            Whether it is counted, and the number of the caller's others.

        Raises:
            SQLAlchemyError: the database does not answer.
        """
        others = (
            select(LivePlaceRow.id, LivePlaceRow.server, ServerRow.beats)
            .join(ServerRow, ServerRow.id == LivePlaceRow.server, isouter=True)
            .where(LivePlaceRow.caller == caller, LivePlaceRow.id != place)
        )
        mine = self._insert(LivePlaceRow).values(id=place, caller=caller, server=server)
        with self._engine.begin() as connection:
            self._lock(connection, caller)
            rows = connection.execute(others).all()
            if dead := [row.id for row in rows if row.server != server and _is_dead(row.server, row.beats, silent)]:
                connection.execute(delete(LivePlaceRow).where(LivePlaceRow.id.in_(dead)))
            live = len(rows) - len(dead)
            if most is not None and live >= most:
                return False, live
            moved = {"caller": caller, "server": server}
            connection.execute(mine.on_conflict_do_update(index_elements=[LivePlaceRow.id], set_=moved))
        return True, live

    def end(self, place: str, server: str) -> bool:
        """Free a place; return False where it is another server's by now.

        Raises:
            SQLAlchemyError: the database does not answer.
        """
        with self._engine.begin() as connection:
            mine = (LivePlaceRow.id == place, LivePlaceRow.server == server)
            return connection.execute(delete(LivePlaceRow).where(*mine)).rowcount > 0

    def _insert(self, table: type[RateRow] | type[LivePlaceRow]) -> postgresql.Insert | sqlite.Insert:
        """Return an insert that may have an ON CONFLICT."""
        return postgresql.insert(table) if self._postgresql else sqlite.insert(table)

    def _now(self) -> ColumnElement[float]:
        """Return the time of the statement, seconds since the epoch."""
        if self._postgresql:
            return func.extract("epoch", func.statement_timestamp()).cast(RateRow.due.type)
        return (func.julianday("now") - literal(UNIX_EPOCH)) * literal(DAY_S)

    def _lock(self, connection: Connection, caller: str) -> None:
        """Have others wait who count the same caller's generations, until the transaction ends."""
        if self._postgresql:  # SQLite's transaction has the whole file
            digest = hashlib.blake2b(f"live places of {caller}".encode(), digest_size=8).digest()
            connection.execute(select(func.pg_advisory_xact_lock(int.from_bytes(digest, "big", signed=True))))


def free_places(connection: Connection, servers: Iterable[str]) -> None:
    """Free the places of servers that have ended."""
    connection.execute(delete(LivePlaceRow).where(LivePlaceRow.server.in_(servers)))


def _is_dead(server: str, beats: int | None, silent: Silent) -> bool:
    """Return whether a server counts as dead.

    Args:
        beats: its beats in the database; None where it has none.
    """
    return silent.settled if beats is None else silent.beats.get(server) == beats
