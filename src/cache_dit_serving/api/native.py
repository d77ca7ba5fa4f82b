"""The native routes: what each endpoint does, between HTTP and the worker. No torch here."""

from __future__ import annotations

import asyncio
import base64
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.requests import Request

from cache_dit_serving.api.envelope import request_id_of
from cache_dit_serving.config import Settings
from cache_dit_serving.errors import ClientGone, DeadlineExceeded
from cache_dit_serving.jobs.worker import EncodedImage, Generation, PipelineWorker
from cache_dit_serving.media.images import encode_image
from cache_dit_serving.media.outputs import OutputFolder
from cache_dit_serving.pipeline.arguments import GenerationCall, plan
from cache_dit_serving.pipeline.evidence import merge_reports
from cache_dit_serving.pipeline.runner import DrawnImage, check_finite
from cache_dit_serving.schemas import (
    FlushResponse,
    GenerateRequest,
    GenerateResponse,
    HealthResponse,
    ImageStats,
    ModelInfo,
    Timings,
)

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
            ServingError: InvalidRequest, QueueFull, NotReady, ClientGone, DeadlineExceeded or InternalError.
        """
        request_id = request_id_of(http.scope)
        runner = self.worker.runner()
        call = plan(request, runner.traits, self.settings)
        # What is wrong with the folder should be known before the work is done.
        folder = self.outputs.folder(request.output_dir) if request.wants_files else None
        generation = Generation(request_id, call, lambda drawn: _encode(drawn, call, request))
        self.worker.submit(generation)
        images = await self._result(generation, http)
        if folder is not None:
            delivered = await asyncio.to_thread(self._save, images, folder, request, http)
        else:
            delivered = [image.base64 for image in images if image.base64 is not None]
        return _response(generation, images, delivered, request)

    def health(self) -> HealthResponse:
        """Ready, with the queue as it is.

        Raises:
            NotReady: loading (with the stage), failed (with the reason) or draining.
        """
        self.worker.runner()
        return HealthResponse(status=self.worker.state, reason=self.worker.reason, queue=self.worker.queue())

    def model_info(self) -> ModelInfo:
        """The loaded model; answers while a generation runs.

        Raises:
            NotReady: there is no loaded model.
        """
        return self.worker.runner().describe()

    async def flush_cache(self) -> FlushResponse:
        """Free the cached activations once no generation runs.

        Raises:
            NotReady: there is no loaded model.
        """
        freed = await asyncio.wrap_future(self.worker.between_generations(lambda runner: runner.flush_cache()))
        message = f"freed {freed:,} bytes of cached activations" if freed else "no cached activations were held"
        return FlushResponse(success=True, message=message, freed_bytes=freed)

    async def _result(self, generation: Generation, http: Request) -> list[EncodedImage]:
        """The generation's images; it stops between two steps when the client goes or the time is up first."""
        result = asyncio.wrap_future(generation.result)
        # Nobody may be there any more when it fails: asyncio would log that as forgotten.
        result.add_done_callback(lambda done: done.cancelled() or done.exception())
        gone = asyncio.ensure_future(_disconnected(http))
        either: set[asyncio.Future[Any]] = {result, gone}
        try:
            limit_s = self.settings.limits.max_request_s
            await asyncio.wait(either, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return result.result()
            if gone.done():
                raise ClientGone("the client closed the connection; the generation was stopped")
            raise DeadlineExceeded(f"the generation was stopped: not done within the {limit_s:g} s of this server")
        finally:
            self.worker.cancel(generation)
            gone.cancel()

    def _save(self, images: list[EncodedImage], folder: Path, request: GenerateRequest, http: Request) -> list[str]:
        """Write the images, once all are done; their paths or URLs."""
        paths = [self.outputs.save(image.content, folder, extension=request.encoding) for image in images]
        if request.output_format == "path":
            return [str(path) for path in paths]
        base = (self.settings.outputs.public_url or str(http.base_url)).rstrip("/")
        return [f"{base}{OUTPUTS_ROUTE}/{path.relative_to(self.outputs.root).as_posix()}" for path in paths]


async def _disconnected(http: Request) -> None:
    """Returns when the client has closed the connection; the request's body must have been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _encode(drawn: DrawnImage, call: GenerationCall, request: GenerateRequest) -> EncodedImage:
    began = time.perf_counter()
    check_finite(drawn.pixels)
    content = encode_image(drawn.pixels, request.encoding, request.image_quality, call.parameters(drawn.seed))
    text = None if request.wants_files else base64.b64encode(content).decode("ascii")
    return EncodedImage(drawn, content, text, time.perf_counter() - began)


def _response(
    generation: Generation, images: list[EncodedImage], delivered: list[str], request: GenerateRequest
) -> GenerateResponse:
    started, finished = generation.started, generation.finished
    assert started is not None
    assert finished is not None
    drawn = [image.drawn for image in images]
    return GenerateResponse(
        images=delivered,
        seeds=[image.seed for image in drawn],
        time_cost=round(finished - started, 4),
        inference_start_time=_timestamp(started),
        inference_end_time=_timestamp(finished),
        timings=Timings(
            queue=round(started - generation.submitted, 4),
            encode_prompt=round(sum(image.encode_prompt_s for image in drawn), 4),
            denoise=round(sum(image.denoise_s for image in drawn), 4),
            decode=round(sum(image.decode_s for image in drawn), 4),
            encode_output=round(sum(image.encode_s for image in images), 4),
        ),
        request_id=generation.id,
        cache=merge_reports([image.cache for image in drawn]),
        stats=[ImageStats(seed=image.seed, block_lists=image.stats) for image in drawn]
        if request.include_stats
        else [],
    )


def _timestamp(seconds: float) -> str:
    """ISO 8601 in UTC with milliseconds, from seconds since the epoch."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
