"""Jobs that have ended and may be forgotten, in batches: each takes the database for a few milliseconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, delete, or_, select

from cache_dit_serving.jobs.store.exchanged import BATCH, Ended
from cache_dit_serving.jobs.store.tables import LIVE, JobRow

PAGE = 500
"""Jobs on one page."""


@dataclass(frozen=True)
class FilesPage:
    """Some of the jobs with outputs."""

    jobs: list[Ended]
    next: int | None
    """Number after which the next page begins; None for the last one."""


class Aged:
    """Queries and deletions of jobs that have ended, for any thread."""

    def __init__(self, reading: Engine, writing: Engine) -> None:
        """
        Args:
            writing: for transactions that write.
        """
        self._reading = reading
        self._writing = writing

    def surplus(self, ended_before: float, most: int) -> list[Ended]:
        """Some jobs that ended before a time, or that more than so many have ended after, the first ones first."""
        order = JobRow.ended, JobRow.number
        with self._reading.connect() as connection:
            latest = select(*order).where(JobRow.ended.is_not(None)).order_by(*(column.desc() for column in order))
            last = connection.execute(latest.offset(most).limit(1)).first()
            due = JobRow.ended < ended_before
            if last is not None:
                too_many = or_(JobRow.ended < last.ended, (JobRow.ended == last.ended) & (JobRow.number <= last.number))
                due = or_(due, too_many)
            ended = select(JobRow.id, JobRow.files).where(JobRow.ended.is_not(None), due).order_by(*order)
            return [_ended(*row) for row in connection.execute(ended.limit(BATCH))]

    def live(self) -> set[str]:
        """Ids of jobs that have not ended."""
        with self._reading.connect() as connection:
            return set(connection.scalars(select(JobRow.id).where(JobRow.state.in_(LIVE))))

    def with_files(self, after: int) -> FilesPage:
        """Jobs that have ended with outputs, in the order of admission.

        Args:
            after: `next` of the page before; 0 for the first one.
        """
        query = select(JobRow.number, JobRow.id, JobRow.files, JobRow.ended).where(JobRow.number > after)
        with self._reading.connect() as connection:
            rows = connection.execute(query.order_by(JobRow.number).limit(PAGE)).all()
        jobs = [_ended(row.id, row.files) for row in rows if row.ended is not None and row.files != "[]"]
        return FilesPage(jobs, rows[-1].number if len(rows) == PAGE else None)

    def delete(self, jobs: Sequence[str]) -> None:
        """Forget jobs, :data:`BATCH` at most."""
        with self._writing.begin() as connection:
            connection.execute(delete(JobRow).where(JobRow.id.in_(jobs)))


def _ended(job: str, files: str) -> Ended:
    return Ended(job, tuple(json.loads(files)))
