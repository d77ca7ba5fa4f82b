"""Requests that are sent twice under one Idempotency-Key: both get the same job."""

from __future__ import annotations

import asyncio
import hashlib

from cache_dit_serving.engine.caller import Caller
from cache_dit_serving.engine.intake import Intake
from cache_dit_serving.engine.job_desk import JobDesk
from cache_dit_serving.errors import InternalError
from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.jobs.store.exchanged import KeyTaken


async def admit_once(desk: JobDesk, intake: Intake, key: str | None, prefix: str = "") -> tuple[JobRecord, bool]:
    """Return the job of a request, and whether it was there before.

    Args:
        key: the caller's; None: the request is a job of its own.
        prefix: beginning of the id of a new job.

    Raises:
        ServingError: KeyReused, or as :meth:`JobDesk.admit`.
    """
    own = None if key is None else key_of(key, intake.caller)
    # Uploads are hashed at some 400 MB a second on a slow machine; the event loop has others to answer meanwhile.
    digest = await asyncio.to_thread(digest_of, intake) if intake.uploads else digest_of(intake)
    if own is not None and (record := await desk.of_key(own, digest)) is not None:
        return record, True
    try:
        return await desk.admit(intake, own, digest, prefix), False
    except KeyTaken:  # by one that came meanwhile
        record = await desk.of_key(own, digest) if own else None
        if record is None:
            raise InternalError from None
        return record, True


def key_of(key: str, caller: Caller) -> str:
    """Return a caller's key apart from the same key of other callers."""
    return f"{caller.name} {key}" if caller.name else key


def digest_of(intake: Intake) -> str:
    """Return the hash of a request and the files that came with it, by which the same request is known again."""
    digest = hashlib.sha256(intake.request.model_dump_json(exclude_unset=True).encode())
    for upload in intake.uploads:
        content = upload.encode() if isinstance(upload, str) else upload
        digest.update(len(content).to_bytes(8))
        digest.update(content)
    return digest.hexdigest()
