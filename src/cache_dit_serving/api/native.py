"""The native routes: what each endpoint does, between HTTP and the worker. No torch here."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request

from cache_dit_serving.api.capabilities import capabilities_of
from cache_dit_serving.api.compare import compared_response
from cache_dit_serving.api.deadline import plan_within_deadline
from cache_dit_serving.api.envelope import request_id_of
from cache_dit_serving.api.model_info import model_info
from cache_dit_serving.caching.evidence import merge_reports
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.errors import ClientGone, DeadlineExceeded, InvalidRequest
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.generation import Encoded, Generation
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.media.outputs import OutputFolder
from cache_dit_serving.planning.call import GenerationCall
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.schemas.answers import (
    Capabilities,
    CompareResponse,
    DeadlineReport,
    FlushResponse,
    GenerateResponse,
    HealthResponse,
    ImageStats,
    ModelInfo,
    Timings,
)
from cache_dit_serving.schemas.request import GenerateRequest

OUTPUTS_ROUTE = "/outputs"


class NativeApi:
    """The endpoints over one worker and one folder of outputs."""

    def __init__(self, settings: Settings, worker: PipelineWorker) -> None:
        self.settings = settings
        self.worker = worker
        self.outputs = OutputFolder(settings.outputs.root)

    async def generate(self, request: GenerateRequest, http: Request) -> GenerateResponse:
        """Plan, queue, wait (no longer than the client does), answer.

        Raises:
            ServingError: InvalidRequest, CacheNotEngaged, QueueFull, NotReady, ClientGone, DeadlineExceeded or
                InternalError.
        """
        model = self.worker.loaded().model
        queue_s = self.worker.wait_s() if request.deadline_s is not None else 0.0
        call, deadline = plan_within_deadline(request, model, self.worker.rates, queue_s)
        generation, images = await self._run(call, request, http)
        delivered = await self._deliver([(image.content, image.extension) for image in images], request, http)
        return _response(generation, images, delivered, request, deadline)

    async def compare(self, request: GenerateRequest, http: Request) -> CompareResponse:
        """The same image with the cache and without, as one entry of the queue.

        Raises:
            ServingError: as :meth:`generate`.
        """
        if request.deadline_s is not None:
            raise InvalidRequest("deadline_s is for /generate: a comparison runs what it is asked", param="deadline_s")
        call = plan(request, self.worker.loaded().model)
        if call.cache.settings is None and request.cache is not None and not request.cache.enabled:
            raise InvalidRequest("a comparison needs the cache; leave cache.enabled out", param="cache.enabled")
        call = call.compared()
        generation, images = await self._run(call, request, http)
        return await compared_response(generation, images, request, lambda files: self._deliver(files, request, http))

    def health(self) -> HealthResponse:
        """Ready, with the queue as it is.

        Raises:
            NotReady: loading (with the stage), failed (with the reason) or draining.
        """
        unfulfilled = self.worker.loaded().model.speeds.unfulfilled
        reason = f"serving without a cache: {unfulfilled}" if unfulfilled else self.worker.reason
        return HealthResponse(status=self.worker.state, reason=reason, queue=self.worker.queue())

    def model_info(self) -> ModelInfo:
        """The loaded model; answers while a generation runs.

        Raises:
            NotReady: there is no loaded model.
        """
        return model_info(self.worker.loaded())

    def capabilities(self) -> Capabilities:
        """What this server accepts; answers while a generation runs.

        Raises:
            NotReady: there is no loaded model.
        """
        return capabilities_of(self.worker.loaded(), self.worker.rates)

    async def flush_cache(self) -> FlushResponse:
        """Free the cached activations once no generation runs.

        Raises:
            NotReady: there is no loaded model.
        """
        freed = await asyncio.wrap_future(self.worker.between_generations(lambda runner: runner.flush()))
        message = f"freed {freed:,} bytes of cached activations" if freed else "no cached activations were held"
        return FlushResponse(success=True, message=message, freed_bytes=freed)

    async def _run(
        self, call: GenerationCall, request: GenerateRequest, http: Request
    ) -> tuple[Generation, list[Encoded]]:
        """Queue a call and wait for its images."""
        if request.wants_files:
            # What is wrong with the folder should be known before the work is done.
            self.outputs.folder(request.output_dir)
        generation = Generation(request_id_of(http.scope), call)
        self.worker.submit(generation)
        return generation, await self._result(generation, http, request.deadline_s)

    async def _result(self, generation: Generation, http: Request, deadline_s: float | None) -> list[Encoded]:
        """The generation's images; it stops between two steps when the client goes or the time is up first."""
        result = asyncio.wrap_future(generation.result)
        # Nobody may be there any more when it fails: asyncio would log that as forgotten.
        result.add_done_callback(lambda done: done.cancelled() or done.exception())
        gone = asyncio.ensure_future(_disconnected(http))
        either: set[asyncio.Future[Any]] = {result, gone}
        try:
            limit_s = min(self.settings.limits.max_request_s, deadline_s or float("inf"))
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
            self.worker.cancel(generation)
            gone.cancel()

    async def _deliver(self, files: list[tuple[bytes, str]], request: GenerateRequest, http: Request) -> list[str]:
        """Pictures, each with its file extension, as `output_format` asks: base64 text, paths or URLs."""
        if request.wants_files:
            return await asyncio.to_thread(self._save, files, request, http)
        return await asyncio.to_thread(lambda: [base64.b64encode(content).decode("ascii") for content, _ in files])

    def _save(self, files: list[tuple[bytes, str]], request: GenerateRequest, http: Request) -> list[str]:
        """Write the pictures, once all are done; their paths or URLs."""
        folder = self.outputs.folder(request.output_dir)
        paths = self.outputs.save_all(files, folder)
        if request.output_format == "path":
            return [str(path) for path in paths]
        base = (self.settings.outputs.public_url or str(http.base_url)).rstrip("/")
        return [f"{base}{OUTPUTS_ROUTE}/{path.relative_to(self.outputs.root).as_posix()}" for path in paths]


async def _disconnected(http: Request) -> None:
    """Returns when the client has closed the connection; the request's body must have been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _response(
    generation: Generation,
    images: list[Encoded],
    delivered: list[str],
    request: GenerateRequest,
    deadline: DeadlineReport | None,
) -> GenerateResponse:
    started, finished = generation.started, generation.finished
    assert started is not None
    assert finished is not None
    records = [image.record for image in images]
    return GenerateResponse(
        images=delivered,
        seeds=[record.seed for record in records],
        time_cost=round(finished - started, 4),
        inference_start_time=_timestamp(started),
        inference_end_time=_timestamp(finished),
        timings=Timings(
            queue=round(started - generation.submitted, 4),
            encode_prompt=round(sum(record.encode_prompt_s for record in records), 4),
            denoise=round(sum(record.denoise_s for record in records), 4),
            decode=round(sum(record.decode_s for record in records), 4),
            encode_output=round(sum(image.encode_s for image in images), 4),
        ),
        request_id=generation.id,
        cache=merge_reports([record.cache for record in records]),
        deadline=deadline,
        stats=[ImageStats(seed=record.seed, block_lists=record.stats) for record in records]
        if request.include_stats
        else [],
    )


def _timestamp(seconds: float) -> str:
    """ISO 8601 in UTC with milliseconds, from seconds since the epoch."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
