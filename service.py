"""The service: a diffusion transformer under cache-dit, behind BentoML.

`bentoml serve` runs it. `CACHE_DIT_SERVING_CONFIG` is the name of a file in configs/ or a path. The implementation is
in src/cache_dit_serving: api/ (HTTP), jobs/ (the queue and its one worker), pipeline/ (torch), media/ (bytes).
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path
from typing import Any

import bentoml
from bentoml._internal.context import server_context
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

# In a Bento the sources lie beside this file and are not installed.
sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from cache_dit_serving.api.envelope import Envelope, answers_errors
from cache_dit_serving.api.http_metrics import start_http_series
from cache_dit_serving.api.job_parameters import prefers_job
from cache_dit_serving.api.jobs import JobsApi
from cache_dit_serving.api.lifecycle import (
    announce,
    drain_on_signals,
    end_failed,
    end_process,
    end_with_supervisor,
    freeze_heap,
)
from cache_dit_serving.api.matching import mounted_routes
from cache_dit_serving.api.openai import Served
from cache_dit_serving.api.openai_images import OpenAiImages
from cache_dit_serving.api.openai_videos import VideosApi
from cache_dit_serving.api.origin import cors_options
from cache_dit_serving.api.receive import received
from cache_dit_serving.api.request_state import state_of
from cache_dit_serving.engine.engine import Engine
from cache_dit_serving.engine.job_desk import JobDesk
from cache_dit_serving.gpus import take_share
from cache_dit_serving.jobs.metrics import forget_ended_workers, start_series
from cache_dit_serving.jobs.shared import CallerCounts, shared_folder
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.logs import configure_logs
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.pipeline.environment import library_versions
from cache_dit_serving.pipeline.protocol import Loaded
from cache_dit_serving.runners.ranked import RankedRunner
from cache_dit_serving.schemas.answers import (
    CompareResponse,
    FlushResponse,
    GenerateResponse,
    HealthResponse,
    ModelInfo,
)
from cache_dit_serving.schemas.request import GenerateRequest
from cache_dit_serving.supervisor import (
    access_or_exit,
    hold_folder_of_server,
    prepare_supervisor,
    process_name,
    resolved_or_exit,
    trust_proxies,
)

RESOLVED = resolved_or_exit()
SETTINGS = RESOLVED.settings
configure_logs(SETTINGS.server.log_level, SETTINGS.server.log_format, process_name())
prepare_supervisor(RESOLVED)
trust_proxies(SETTINGS.server)
end_with_supervisor()
FOLDER = shared_folder(SETTINGS.server.workers)
COUNTS = None if FOLDER is None else CallerCounts(FOLDER)
ACCESS = access_or_exit(SETTINGS.server, COUNTS)
take_share(SETTINGS, server_context.worker_index)
# By default BentoML and BentoCloud end requests after 60 s. This is later than our own timeout, whose answer says why.
TIMEOUT_S = SETTINGS.limits.max_request_s + 60


@bentoml.service(
    name="cache_dit_serving",
    resources={"gpu": SETTINGS.server.workers * SETTINGS.gpus_per_worker},
    workers=SETTINGS.server.workers,
    traffic={"timeout": TIMEOUT_S},
)
@bentoml.asgi_app(mounted_routes(), path="/")
class CacheDiTServing:
    """Diffusion transformers accelerated by cache-dit."""

    def __init__(self) -> None:
        hold_folder_of_server()
        forget_ended_workers()
        start_series(library_versions())
        start_http_series()
        self.worker = PipelineWorker(
            partial(RankedRunner.start if SETTINGS.parallelism else assemble, SETTINGS),
            max_queue=SETTINGS.limits.max_queue,
            order=SETTINGS.server.queue_order,
            preview_every=SETTINGS.previews.every,
            max_step_s=SETTINGS.limits.max_step_s,
            counts=COUNTS,
            on_ready=self._became_ready,
            on_failed=end_failed if SETTINGS.server.on_load_failure == "exit" else lambda: None,
            retries=SETTINGS.server.on_load_failure == "retry",
        )
        self.engine = Engine(SETTINGS, self.worker, RESOLVED.name)
        self.desk = JobDesk(self.engine)
        self.jobs = JobsApi(self.engine, self.desk)
        self.served = Served(self.engine)
        self.images = OpenAiImages(self.engine, self.served)
        self.videos = VideosApi(self.engine, self.desk, self.served)
        drain_on_signals(self.worker, SETTINGS.server.drain_s, self.engine.decoding.close)
        # The model loads on the worker's thread, so that /livez and /health answer during the load.
        self.worker.start()

    def _became_ready(self, loaded: Loaded) -> None:
        freeze_heap()
        announce(loaded, CacheDiTServing.url)

    async def __is_ready__(self) -> bool:
        return self.worker.state == "ready"

    async def __is_alive__(self) -> bool:
        return not self.worker.stalled

    @bentoml.api(input_spec=GenerateRequest, output_spec=GenerateResponse)
    @answers_errors
    async def generate(self, ctx: bentoml.Context, **fields: Any) -> GenerateResponse | Response:
        """Draw pictures from a prompt."""
        if prefers_job(ctx.request.headers):
            return await self.jobs.accepted(state_of(ctx.request.scope).asked(GenerateRequest), ctx.request)
        return await self.engine.generate(received(state_of(ctx.request.scope).asked(GenerateRequest), ctx.request))

    @bentoml.api(input_spec=GenerateRequest, output_spec=CompareResponse)
    @answers_errors
    async def compare(self, ctx: bentoml.Context, **fields: Any) -> CompareResponse:
        """Draw one seed with and without the cache, and measure the difference."""
        return await self.engine.compare(received(state_of(ctx.request.scope).asked(GenerateRequest), ctx.request))

    @bentoml.api(output_spec=HealthResponse)
    @answers_errors
    async def health(self, ctx: bentoml.Context) -> HealthResponse:
        """Report whether the server can generate, and the reason if not."""
        return self.engine.health()

    @bentoml.api(output_spec=ModelInfo)
    @answers_errors
    async def model_info(self, ctx: bentoml.Context) -> ModelInfo:
        """Describe the loaded model, its fields and its limits."""
        return self.engine.model_info()

    @bentoml.api(output_spec=FlushResponse)
    @answers_errors
    async def flush_cache(self, ctx: bentoml.Context) -> FlushResponse:
        """Free the cached activations."""
        return await self.engine.flush_cache()

    @bentoml.on_startup
    async def startup(self) -> None:
        self.desk.start()

    @bentoml.on_shutdown
    async def shutdown(self) -> None:
        self.engine.decoding.close()
        self.worker.drain()
        ended = await asyncio.to_thread(self.worker.join, TIMEOUT_S)
        await self.desk.close()
        if not ended:
            end_process()


if SETTINGS.server.cors_origins:
    # Outermost, because a browser sends no key with its preflight request and must be able to read errors too.
    CacheDiTServing.add_asgi_middleware(CORSMiddleware, **cors_options(SETTINGS.server.cors_origins))
CacheDiTServing.add_asgi_middleware(Envelope, limits=SETTINGS.limits, server=SETTINGS.server, access=ACCESS)
