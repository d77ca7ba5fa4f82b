"""The server's work on each request, between its transport and the worker. No torch here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import NamedTuple

from cache_dit_serving.caching.evidence import merge_reports
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.engine.capabilities import capabilities_of
from cache_dit_serving.engine.compare import compared_response
from cache_dit_serving.engine.deadline import plan_within_deadline
from cache_dit_serving.engine.inputs import inputs_of, with_fitting_pictures
from cache_dit_serving.engine.intake import Intake
from cache_dit_serving.engine.model_info import loras_of_model, model_info
from cache_dit_serving.engine.stats import stats_of
from cache_dit_serving.errors import Forbidden, InvalidRequest, NotFound
from cache_dit_serving.jobs.generation import Encoded, Generation
from cache_dit_serving.jobs.submission import images_of
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.media.decode.pool import DecodingPool
from cache_dit_serving.media.delivery import Delivery
from cache_dit_serving.media.inputs import NO_INPUTS, Inputs
from cache_dit_serving.media.object_outputs import ObjectOutputs
from cache_dit_serving.media.outputs import OutputFolder, Outputs
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.planning.brought import variant_for
from cache_dit_serving.planning.call import GenerationCall
from cache_dit_serving.planning.fields.inputs import FIELDS_OF_INPUTS
from cache_dit_serving.planning.loras import LoraTraits
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.schemas.answers import (
    Capabilities,
    CompareResponse,
    DeadlineReport,
    FlushResponse,
    GenerateResponse,
    HealthResponse,
    LorasResponse,
    ModelInfo,
    Timings,
    timestamp,
)
from cache_dit_serving.schemas.request import GenerateRequest


class Prepared(NamedTuple):
    """A request on its way to the queue."""

    request: GenerateRequest
    generation: Generation
    delivery: Delivery
    deadline: DeadlineReport | None


class Engine:
    """The endpoints over one worker and one place of outputs."""

    def __init__(self, settings: Settings, worker: PipelineWorker, configuration: str = "") -> None:
        """
        Args:
            configuration: name of the one that the settings are of.
        """
        self._configuration = configuration
        self.settings = settings
        self.worker = worker
        self.decoding = DecodingPool(settings.inputs, settings.limits.max_queue)
        place, guarded = settings.outputs, settings.server.has_keys
        self.outputs: Outputs = (
            OutputFolder(place.root, place.sign_s if guarded else None, place.readers)
            if place.store is None
            else ObjectOutputs(place)
        )

    async def generate(self, asked: Intake) -> GenerateResponse:
        """Plan, queue, wait (no longer than the client does), answer.

        Raises:
            ServingError: InvalidRequest, CacheNotEngaged, QueueFull, NotReady, ClientGone, DeadlineExceeded or
                InternalError.
        """
        prepared = await self.prepare(asked)
        self.submit(prepared, asked)
        response, _ = await self.finish(prepared, await self.drawn(prepared, asked.left()))
        return response

    def submit(self, prepared: Prepared, asked: Intake) -> None:
        """Let a planned request queue.

        Raises:
            ServingError: QueueFull, RateLimited or NotReady.
        """
        self.worker.submit(prepared.generation, asked.caller.max_live)

    def no_previews(self, generation: Generation | None) -> str | None:
        """Why there are no previews of a generation; None where there are, or may be.

        Args:
            generation: None where this worker has none of it.
        """
        if not self.settings.previews.allow:
            return "this server makes no previews (previews.allow is false)"
        return self.worker.no_previews(generation.call.pipeline_class) if generation is not None else None

    async def drawn(self, prepared: Prepared, caller_gone: Awaitable[object]) -> list[Encoded]:
        """What a request that queues draws, no longer than its caller waits.

        Raises:
            ServingError: as :func:`jobs.submission.images_of`.
        """
        return await images_of(
            prepared.generation,
            self.worker,
            caller_gone=caller_gone,
            max_request_s=self.settings.limits.max_request_s,
            deadline_s=prepared.request.deadline_s,
        )

    async def prepare(self, asked: Intake) -> Prepared:
        """Fetch what a request names, and plan it.

        Raises:
            ServingError: InvalidRequest, QueueFull, NotReady, ClientGone, DeadlineExceeded or InternalError.
        """
        _check_scope(asked)
        request, model = asked.request, self._model(asked)
        inputs = await self._inputs(asked, model)
        priority = self._priority(request)
        queue_s = self.worker.wait_s(priority) if request.deadline_s is not None else 0.0
        call, deadline = plan_within_deadline(request, model, self.worker.rates, queue_s, inputs)
        call = await asked.while_connected(with_fitting_pictures(call, self.decoding))
        return Prepared(request, _generation(call, asked, priority), self._delivery(asked), deadline)

    async def finish(self, prepared: Prepared, images: list[Encoded]) -> tuple[GenerateResponse, tuple[str, ...]]:
        """Deliver the images of a request; the answer, and the names of outputs that were written.

        Raises:
            InternalError: they cannot be written.
        """
        files = [(image.content, image.extension) for image in images]
        delivered = await asyncio.to_thread(prepared.delivery.deliver, files)
        response = _response(prepared.generation, images, delivered.texts, prepared.request, prepared.deadline)
        return response, delivered.names

    async def compare(self, asked: Intake) -> CompareResponse:
        """The same image with the cache and without, as one entry of the queue.

        Raises:
            ServingError: as :meth:`generate`.
        """
        request = asked.request
        if request.deadline_s is not None:
            raise InvalidRequest("deadline_s is for /generate: a comparison runs what it is asked", param="deadline_s")
        _check_scope(asked)
        model = self._model(asked)
        call = plan(request, model, await self._inputs(asked, model))
        if call.cache.settings is None and request.cache is not None and not request.cache.enabled:
            raise InvalidRequest("a comparison needs the cache; leave cache.enabled out", param="cache.enabled")
        call = await asked.while_connected(with_fitting_pictures(call, self.decoding))
        delivery = self._delivery(asked)
        generation = _generation(call.compared(), asked, self._priority(request))
        self.worker.submit(generation, asked.caller.max_live)
        images = await self.drawn(Prepared(request, generation, delivery, None), asked.left())
        return await asyncio.to_thread(compared_response, generation, images, request, delivery)

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
        return model_info(self.worker.loaded(), self._configuration)

    def capabilities(self) -> Capabilities:
        """What this server accepts; answers while a generation runs.

        Raises:
            NotReady: there is no loaded model.
        """
        return capabilities_of(self.worker.loaded(), self.worker.rates)

    def loras(self) -> LorasResponse:
        """The LoRAs that there are, and what requests may do with them.

        Raises:
            NotReady: there is no loaded model.
        """
        return loras_of_model(self.worker.loaded())

    async def load_lora(self, name: str) -> LorasResponse:
        """Load a LoRA of the folder once no generation runs; nothing where it is loaded.

        Raises:
            NotFound: there is none of this name.
            InvalidRequest: its file cannot be loaded.
            NotReady: there is no loaded model.
        """
        if not self._lora(name).fused:
            await asyncio.wrap_future(self.worker.between_generations(lambda runner: runner.load_lora(name)))
        return self.loras()

    async def unload_lora(self, name: str) -> LorasResponse:
        """Free the memory of a LoRA of the folder once no generation runs.

        Raises:
            NotFound: there is none of this name.
            InvalidRequest: it is one of the configuration's list, which stay loaded.
            NotReady: there is no loaded model.
        """
        if self._lora(name).contents is not None:
            raise InvalidRequest(f"{name} is loaded with the model, and stays; choose loras without it", param="name")
        await asyncio.wrap_future(self.worker.between_generations(lambda runner: runner.unload_lora(name)))
        return self.loras()

    def _lora(self, name: str) -> LoraTraits:
        loras = {lora.name: lora for lora in self.worker.loaded().model.loras}
        if name not in loras:
            raise NotFound(f"there is no LoRA of this name; there is: {', '.join(loras) or 'none'}", param="name")
        return loras[name]

    async def flush_cache(self) -> FlushResponse:
        """Free the cached activations and the prompts' embeddings once no generation runs.

        Raises:
            NotReady: there is no loaded model.
        """
        freed = await asyncio.wrap_future(self.worker.between_generations(lambda runner: runner.flush()))
        what = [(freed.activations, "cached activations"), (freed.prompts, "prompt embeddings")]
        held = [f"{size:,} bytes of {name}" for size, name in what if size]
        return FlushResponse(
            success=True,
            message=f"freed {' and '.join(held)}" if held else "nothing was held",
            freed_bytes=freed.activations,
            freed_prompt_bytes=freed.prompts,
        )

    def _model(self, asked: Intake) -> PlannedModel:
        """The loaded model, as tolerant as the request or the operator has it."""
        return replace(self.worker.loaded().model, tolerant=asked.lenient)

    async def _inputs(self, asked: Intake, model: PlannedModel) -> Inputs:
        """What a request brings, which no model that has no use for it lets in."""
        request = asked.request
        variant_for(request, model)
        if not any(getattr(request, field) for field in FIELDS_OF_INPUTS.values()):
            return NO_INPUTS
        most = model.limits.max_num_frames
        frames = min(request.num_frames or most, most)
        uploads, settings = list(asked.uploads), self.settings.inputs
        reading = inputs_of(request, uploads, settings, frames, self.decoding, mask_kind=asked.mask_kind)
        return await asked.while_connected(reading)

    def _priority(self, request: GenerateRequest) -> int:
        return min(request.priority or 0, self.settings.limits.max_priority)

    def _delivery(self, asked: Intake) -> Delivery:
        request, base_url = asked.request, (self.settings.outputs.public_url or asked.base_url).rstrip("/")
        delivery = Delivery(self.outputs, request.output_format or "base64", request.output_dir, base_url)
        delivery.check()
        return delivery


def _check_scope(asked: Intake) -> None:
    if asked.request.profile and not asked.caller.admin:
        raise Forbidden("this key may not ask for a profile: it lacks the scope admin", param="profile")


def _generation(call: GenerationCall, asked: Intake, priority: int) -> Generation:
    """With what the body's reading had to adjust among its warnings."""
    warnings = tuple(map(asked.sent_as.warning, call.warnings))
    call = replace(call, caller=asked.caller.name, warnings=warnings)
    generation = Generation(asked.id, call, priority, asked.caller.name)
    for warning in asked.warnings:
        generation.warn(warning)
    return generation


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
    makes = generation.call.makes
    return GenerateResponse(
        images=delivered if makes is MediaKind.PICTURE else None,
        video=delivered[0] if makes is MediaKind.CLIP else None,
        audio=delivered[0] if makes is MediaKind.SOUND else None,
        seeds=[record.seed for record in records],
        time_cost=round(finished - started, 4),
        inference_start_time=timestamp(started),
        inference_end_time=timestamp(finished),
        timings=Timings(
            queue=round(started - generation.submitted, 4),
            encode_prompt=round(sum(record.encode_prompt_s for record in records), 4),
            denoise=round(sum(record.denoise_s for record in records), 4),
            decode=round(sum(record.decode_s for record in records), 4),
            encode_output=round(sum(image.encode_s for image in images), 4),
            prompt_hits=sum(record.prompt_hits for record in records),
        ),
        request_id=generation.id,
        cache=merge_reports([record.cache for record in records]),
        deadline=deadline,
        warnings=generation.warnings,
        stats=stats_of(records) if request.include_stats else None,
        peak_memory_bytes=max((record.peak_memory_bytes or 0 for record in records), default=0) or None,
        profiles=[record.profile for record in records if record.profile] or None,
    )
