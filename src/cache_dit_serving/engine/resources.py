"""Resources that the models of a server share: the place of outputs, the decoding processes, the database of jobs."""

from __future__ import annotations

from dataclasses import dataclass

from cache_dit_serving.config.settings import Settings
from cache_dit_serving.jobs.shared_limits import SharedLimits
from cache_dit_serving.jobs.store.database import JobDatabase
from cache_dit_serving.media.decode.pool import DecodingPool
from cache_dit_serving.media.object_outputs import ObjectOutputs
from cache_dit_serving.media.outputs import OutputFolder, Outputs


@dataclass(frozen=True)
class Resources:
    """Resources of one worker process, whichever model a request is for."""

    decoding: DecodingPool
    outputs: Outputs
    database: JobDatabase
    """Database of jobs, which the desk of jobs opens."""
    limits: SharedLimits | None
    """Limits of callers over all servers of the database; None where no other server has it."""

    @classmethod
    def of(cls, settings: Settings) -> Resources:
        """Make the resources that the settings of a server name."""
        place, guarded = settings.outputs, settings.server.has_keys
        database = JobDatabase.of(settings)
        return cls(
            DecodingPool(settings.inputs, settings.limits.max_queue),
            OutputFolder(place.root, place.sign_s if guarded else None, place.readers)
            if place.store is None
            else ObjectOutputs(place),
            database,
            SharedLimits(database) if settings.jobs.database else None,
        )
