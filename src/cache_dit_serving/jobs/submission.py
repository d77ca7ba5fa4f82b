"""Waiting for the images of a generation, no longer than the caller does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from cache_dit_serving.errors import ClientGone, DeadlineExceeded
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.generation import Generation, OutputFile
from cache_dit_serving.jobs.worker import PipelineWorker


async def wait_for_outputs(
    generation: Generation,
    worker: PipelineWorker,
    *,
    caller_gone: Awaitable[object],
    max_request_s: float,
    deadline_s: float | None,
) -> list[OutputFile]:
    """Wait for the outputs of a generation that was submitted. If its caller leaves, it stops between two steps.

    Args:
        caller_gone: done when the caller has gone.
        max_request_s: the server's limit.
        deadline_s: the request's own.

    Raises:
        ServingError: ClientGone, DeadlineExceeded, or what the generation failed with.
    """
    result = asyncio.wrap_future(generation.result)
    # Nobody may be there any more when it fails: asyncio would log that as forgotten.
    result.add_done_callback(lambda done: done.cancelled() or done.exception())
    gone = asyncio.ensure_future(caller_gone)
    either: set[asyncio.Future[Any]] = {result, gone}
    limit_s = min(max_request_s, deadline_s or float("inf"))
    try:
        await asyncio.wait(either, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if result.done():
            images = result.result()
            if deadline_s is not None:
                metrics.DEADLINES.labels("met").inc()
            return images
        if gone.done():
            raise ClientGone("the client closed the connection; the generation was stopped")
        if limit_s == deadline_s:
            metrics.DEADLINES.labels("missed").inc()
            raise DeadlineExceeded(
                f"the generation was stopped: not done within its deadline_s of {limit_s:g} s", param="deadline_s"
            )
        raise DeadlineExceeded(f"the generation was stopped: not done within the {limit_s:g} s of this server")
    finally:
        worker.cancel(generation)
        gone.cancel()
