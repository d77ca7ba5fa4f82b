"""Outputs of jobs as files: each job has a folder below the root of the outputs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from cache_dit_serving.errors import InternalError
from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.jobs.store.exchanged import Ended
from cache_dit_serving.media.outputs import Outputs

JOBS_FOLDER = "jobs"
"""Folder of the jobs' folders, below the root of the outputs."""


def folder_of(job: str) -> str:
    """Return the folder of a job, below the root of the outputs."""
    return f"{JOBS_FOLDER}/{job}"


class JobFiles:
    """Deletion of the files of jobs, away from the event loop."""

    def __init__(self, outputs: Outputs) -> None:
        self._outputs = outputs

    async def delete(self, record: JobRecord) -> None:
        """Delete the outputs of a job.

        Raises:
            InternalError: they cannot be deleted.
        """
        await asyncio.to_thread(self._outputs.delete, record.files, folder_of(record.id))

    async def delete_all(self, jobs: Sequence[Ended]) -> list[Ended]:
        """Delete the outputs of jobs; return the jobs that have none any more."""
        return await asyncio.to_thread(self._delete_all, jobs)

    def _delete_all(self, jobs: Sequence[Ended]) -> list[Ended]:
        gone = []
        for job in jobs:
            with contextlib.suppress(InternalError):  # the log has it; the others are none the worse for it
                self._outputs.delete(job.files, folder_of(job.id))
                gone.append(job)
        return gone

    async def clear(self, job: str) -> None:
        """Delete files that a server wrote for a job and did not record, because it was killed or the job taken over.

        Raises:
            InternalError: they cannot be deleted.
        """
        await asyncio.to_thread(self._outputs.clear, folder_of(job))
