"""Evidence of live traffic in the database of jobs: rows that all servers on it read in one order."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Engine, delete, func, insert, select, text

from cache_dit_serving.jobs.store.exchanged import Entry
from cache_dit_serving.jobs.store.tables import EvidenceRow

KEPT = 20_000
"""Newest rows that are kept."""


class EvidenceStore:
    """Rows of evidence, for any thread."""

    def __init__(self, reading: Engine, writing: Engine) -> None:
        """
        Args:
            writing: for transactions that write.
        """
        self._reading = reading
        self._writing = writing

    def add(self, entries: Sequence[Entry]) -> None:
        """Write entries after all that there are, and delete the oldest ones beyond `KEPT`."""
        with self._writing.begin() as connection:
            _alone(connection)
            for each in entries:
                values = {"kind": each.kind, "environment": each.environment, "body": each.body, "server": each.server}
                connection.execute(insert(EvidenceRow).values(values))
            newest = connection.scalar(select(func.max(EvidenceRow.number))) or 0
            connection.execute(delete(EvidenceRow).where(EvidenceRow.number <= newest - KEPT))

    def after(self, number: int, limit: int) -> list[Entry]:
        """Return the entries after a number, the first ones first."""
        query = select(EvidenceRow).where(EvidenceRow.number > number).order_by(EvidenceRow.number).limit(limit)
        with self._reading.connect() as connection:
            return [
                Entry(row.kind, row.environment, row.body, row.server, row.number) for row in connection.execute(query)
            ]


def _alone(connection: Connection) -> None:
    """Keep other writers of the table out until the transaction ends: a number that is seen has no later one before it.

    SQLite has one writer anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"LOCK TABLE {EvidenceRow.__tablename__} IN EXCLUSIVE MODE"))
