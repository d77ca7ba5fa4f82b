"""The server's work on each request, between its transport and the worker. No torch here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from cache_dit_serving import __version__
from cache_dit_serving.config.residency import SleepLevel
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.engine.answers import answer_of
from cache_dit_serving.engine.caller import Caller
from cache_dit_serving.engine.capabilities import capabilities_of
from cache_dit_serving.engine.compare import compared_response
from cache_dit_serving.engine.intake import Intake
from cache_dit_serving.engine.model_info import loras_of_model, model_info
from cache_dit_serving.engine.preparation import Preparation, Prepared
from cache_dit_serving.engine.quality import Quality
from cache_dit_serving.engine.quality_report import quality_of
from cache_dit_serving.engine.resources import Resources
from cache_dit_serving.errors import InUse, InvalidRequest, NotFound, NotReady, ServingError
from cache_dit_serving.jobs.generation import Generation, OutputFile, always
from cache_dit_serving.jobs.store.access import AGAIN_S, OPENING
from cache_dit_serving.jobs.submission import wait_for_outputs
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.pipeline.protocol import WeightsChoice
from cache_dit_serving.planning.loras import LoraTraits
from cache_dit_serving.planning.resolve import Resolved
from cache_dit_serving.schemas.answers import (
    Capabilities,
    CompareResponse,
    FlushResponse,
    GenerateResponse,
    HealthResponse,
    LorasResponse,
    ModelInfo,
    ReloadResponse,
    SleepResponse,
    WakeResponse,
)
from cache_dit_serving.schemas.quality import QualityResponse

LEAST_S = 0.001
"""Least time that is left of a deadline, seconds."""


class Engine:
    """Work of the endpoints on one model."""

    def __init__(
        self,
        settings: Settings,
        worker: PipelineWorker,
        configuration: str = "",
        *,
        aliases: tuple[str, ...] = (),
        resources: Resources | None = None,
    ) -> None:
        """
        Args:
            configuration: name of the configuration that the settings are from.
            aliases: further names of the model, where it is one of several.
            resources: those of the server; None: they are made for this engine alone.
        """
        self._configuration = configuration
        self._aliases = aliases
        self.settings = settings
        self.worker = worker
        resources = resources or Resources.of(settings)
        self.decoding = resources.decoding
        self.outputs = resources.outputs
        self.database = resources.database
        self.limits = resources.limits
        self.quality = Quality(settings, worker, self.outputs, self.database)
        self._preparation = Preparation(settings, worker, self.decoding, self.outputs, lambda: self.quality.lowered)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the model; answers use the first.

        Raises:
            NotReady: the only model has no configured name, and is not loaded yet.
        """
        if name := self.worker.model.name:
            return (name, *self._aliases)
        return self.settings.server.model_names or (self.worker.loaded().runner.facts.name,)

    @property
    def all_names(self) -> tuple[str, ...]:
        """Names by which requests may choose the model: the only one also by the name of its folder or hub id.

        Raises:
            NotReady: as :attr:`names`.
        """
        if self.worker.model.name:
            return self.names
        own = self.worker.loaded().runner.facts.name
        return tuple(dict.fromkeys((*self.names, own, own.rpartition("/")[2])))

    def resolve(self, intake: Intake) -> Resolved:
        """Find the task of a request.

        Raises:
            ServingError: as :meth:`Preparation.resolve`.
        """
        return self._preparation.resolve(intake)

    async def prepare(self, intake: Intake, resolved: Resolved | None = None) -> Prepared:
        """Prepare a request for the queue.

        Args:
            resolved: the request with its task, where that has been resolved.

        Raises:
            ServingError: as :meth:`Preparation.resolve` and :meth:`Preparation.generation`.
        """
        return await self._preparation.generation(intake, resolved or self.resolve(intake))

    async def submit(
        self,
        prepared: Prepared,
        may_start: Callable[[], bool] = always,
        *,
        job: str | None = None,
        resumed: bool = False,
    ) -> None:
        """Let a prepared request queue.

        Args:
            may_start: as of :meth:`PipelineWorker.submit`.
            job: name of its job; None: it is of none.
            resumed: whether its job was admitted by another server, which held it to its caller's limits.

        Raises:
            ServingError: QueueFull, RateLimited or NotReady.
        """
        generation, caller = prepared.generation, prepared.intake.caller
        limits = self.limits if caller.max_live is not None or (resumed and caller.name) else None
        if limits is not None and (live := await limits.begin(generation, caller.max_live, job)) is not None:
            raise self.worker.too_many_live(live, generation)
        try:
            self.worker.submit(generation, caller.max_live, may_start)
        except ServingError:
            if limits is not None:
                await limits.end(generation)
            raise

    async def wait(
        self, prepared: Prepared, caller_gone: Awaitable[object], *, waited_s: float = 0.0
    ) -> list[OutputFile]:
        """Wait for the outputs of a request that queues, no longer than its caller does.

        Args:
            caller_gone: done when the caller has gone.
            waited_s: seconds of its deadline that have passed already.

        Raises:
            ServingError: as :func:`jobs.submission.wait_for_outputs`.
        """
        deadline_s = prepared.intake.request.deadline_s
        try:
            return await wait_for_outputs(
                prepared.generation,
                self.worker,
                caller_gone=caller_gone,
                max_request_s=self.settings.limits.max_request_s,
                deadline_s=None if deadline_s is None else max(LEAST_S, deadline_s - waited_s),
            )
        finally:
            # Before the answer: the caller's next request may go to another server.
            if self.limits is not None and prepared.generation.result.done():
                await self.limits.end(prepared.generation)

    async def draw(self, prepared: Prepared) -> list[OutputFile]:
        """Let a prepared request queue, and wait for its outputs as long as its client does.

        Raises:
            ServingError: as :meth:`submit` and :meth:`wait`.
        """
        await self.submit(prepared)
        return await self.wait(prepared, prepared.intake.left())

    async def deliver(self, prepared: Prepared, outputs: list[OutputFile]) -> tuple[GenerateResponse, tuple[str, ...]]:
        """Deliver the outputs of a request; return the answer, and the names of the outputs that were written.

        Raises:
            InternalError: they cannot be written.
        """
        files = [(output.content, output.extension) for output in outputs]
        delivered = await asyncio.to_thread(prepared.delivery.deliver, files)
        return answer_of(prepared, outputs, delivered.texts), delivered.names

    async def generate(self, intake: Intake) -> GenerateResponse:
        """Prepare, queue, wait, deliver.

        Raises:
            ServingError: InvalidRequest, CacheNotEngaged, QueueFull, NotReady, ClientGone, DeadlineExceeded or
                InternalError.
        """
        prepared = await self.prepare(intake)
        response, _ = await self.deliver(prepared, await self.draw(prepared))
        return response

    async def compare(self, intake: Intake) -> CompareResponse:
        """Draw the same output with the cache and without, as one entry of the queue, and measure the difference.

        Raises:
            ServingError: as :meth:`generate`.
        """
        prepared = await self._preparation.comparison(intake, self.resolve(intake))
        return await asyncio.to_thread(compared_response, prepared, await self.draw(prepared))

    def no_previews(self, generation: Generation | None) -> str | None:
        """Return why there are no previews of a generation; None where there are, or may be.

        Args:
            generation: None where this worker has none of it.
        """
        if not self.settings.previews.allow:
            return "this server makes no previews (previews.allow is false)"
        if self.worker.safety.sees_outputs:
            return "this server makes no previews: its safety check sees finished outputs alone"
        if generation is None:
            return None
        model = generation.model if generation.admitted else self.worker.model
        return model.loading.no_previews(generation.planned.call.pipeline_class)

    @property
    def waits_for_database(self) -> bool:
        """True as long as the database that the settings name has not been opened."""
        return self.settings.jobs.database is not None and self.database.access.store is None

    def health(self) -> HealthResponse:
        """Return the health of a server that is ready, with its queue.

        Raises:
            NotReady: loading (with the stage), failed (with the reason) or draining.
        """
        reason = self.reason_of_health() or self.worker.reason
        queue = self.worker.queue()
        if (level := self.worker.asleep) is None:
            return HealthResponse(status=self.worker.state, reason=reason, version=__version__, queue=queue)
        place = "in host memory" if level == "host" else "on disk"
        reason = reason or f"the model's weights are {place}; the next request wakes it"
        return HealthResponse(status="asleep", reason=reason, version=__version__, queue=queue)

    def reason_of_health(self) -> str | None:
        """Return the parts of the service that a server which is ready does without; None: none.

        Raises:
            NotReady: the database that the settings name has not been opened, or the only model is not loaded.
        """
        loading = self.worker.model.loading
        if not self.worker.model.name or loading.state == "ready":
            unfulfilled = loading.loaded().model.speeds.unfulfilled
        else:
            unfulfilled = None
        fault = self.database.access.fault
        if self.waits_for_database:
            raise NotReady(fault or OPENING, code="loading", retry_after_s=AGAIN_S)
        cache = f"serving without a cache: {unfulfilled}" if unfulfilled else None
        jobs = f"jobs are refused: {fault}" if fault else None
        return "; ".join(filter(None, (cache, jobs))) or None

    def model_info(self) -> ModelInfo:
        """Return the description of the loaded model; answers while a generation runs.

        Raises:
            NotReady: there is no loaded model.
        """
        return model_info(self.worker.loaded(), self._configuration, self.settings.outputs.video_encoder)

    def capabilities(self) -> Capabilities:
        """Return the requests that this server accepts; answers while a generation runs.

        Raises:
            NotReady: there is no loaded model.
        """
        return capabilities_of(self.worker.loaded(), self.worker.rates, self.quality)

    async def quality_report(self, caller: Caller, base_url: str) -> QualityResponse:
        """Return what live traffic says of each speed; single outputs to an operator alone.

        Args:
            base_url: of this server, as its caller has it.

        Raises:
            NotReady: there is no loaded model.
            InternalError: the store of outputs failed.
        """
        self.quality.begin()
        base = (self.settings.outputs.public_url or base_url).rstrip("/")
        address = (lambda name: self.outputs.address(name, "url", base)) if caller.admin else None
        return await asyncio.to_thread(quality_of, self.quality, address)

    def loras(self) -> LorasResponse:
        """Return the LoRAs that there are, and the ways in which requests may use them.

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
        flushed = self.worker.between_generations(lambda runner: runner.flush(), needs_weights=False)
        freed = await asyncio.wrap_future(flushed)
        what = [(freed.activations, "cached activations"), (freed.prompts, "prompt embeddings")]
        held = [f"{size:,} bytes of {name}" for size, name in what if size]
        return FlushResponse(
            success=True,
            message=f"freed {' and '.join(held)}" if held else "nothing was held",
            freed_bytes=freed.activations,
            freed_prompt_bytes=freed.prompts,
        )

    async def sleep(self, level: SleepLevel | None) -> SleepResponse:
        """Have the model of this worker go to sleep once no generation runs.

        Raises:
            InvalidRequest: it cannot sleep at this level.
            InUse: a request waited or came meanwhile.
            NotReady: there is no loaded model.
        """
        slept = await asyncio.wrap_future(self.worker.sleep(level))
        if slept.level is None:
            raise InUse("requests wait for the model, so it stays awake; send this again once none does")
        return SleepResponse(
            status="asleep",
            level=slept.level,
            freed_bytes=slept.freed_bytes,
            seconds=round(slept.seconds, 4),
            workers=self.settings.server.workers,
        )

    async def reload(self, choice: WeightsChoice) -> ReloadResponse:
        """Put other weights in the place of the model's once no generation runs.

        Raises:
            InvalidRequest: the weights are not there, or do not fit the model.
            NotReady: there is no loaded model.
        """
        if (workers := self.settings.server.workers) > 1:
            raise InvalidRequest(
                f"server.workers is {workers}, and this request reaches one of them: the others would go on drawing "
                "with the old weights; run one worker, or start the server anew"
            )
        reloaded = await asyncio.wrap_future(self.worker.reload(choice))
        if self.quality.on:
            self.quality.begin()
        return ReloadResponse(
            model=self.worker.model.name or self.worker.loaded().runner.facts.name,
            weights_version=reloaded.version,
            components=list(reloaded.components),
        )

    async def wake(self) -> WakeResponse:
        """Wake the model of this worker up.

        Raises:
            WakeFailed: its weights do not fit into the device's memory now.
            NotReady: there is no loaded model, or it cannot be loaded again.
        """
        seconds = await asyncio.wrap_future(self.worker.wake())
        return WakeResponse(status="ready", seconds=round(seconds, 4), workers=self.settings.server.workers)
