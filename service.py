"""The service: a diffusion transformer under cache-dit, behind BentoML.

`bentoml serve` runs it. `CACHE_DIT_SERVING_CONFIG` is the name of a file in configs/ or a path. The implementation is
in src/cache_dit_serving: api/ (HTTP), engine/ (the work on a request), jobs/ (the queue and its one worker), pipeline/
(torch), media/ (bytes).
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

from cache_dit_serving.api.answering import answered
from cache_dit_serving.api.envelope import Envelope
from cache_dit_serving.api.http_metrics import start_http_series
from cache_dit_serving.api.lifecycle import Load, drain_on_signals, end_with_supervisor, models_of
from cache_dit_serving.api.matching import mounted_routes
from cache_dit_serving.api.methods import answers_errors, specs
from cache_dit_serving.api.origin import cors_options
from cache_dit_serving.api.parts import Parts
from cache_dit_serving.api.request_state import state_of
from cache_dit_serving.api.telemetry import send_last_spans, start_spans, tracing_options
from cache_dit_serving.config.models import NamedModel
from cache_dit_serving.gpus import take_share
from cache_dit_serving.jobs.metrics import forget_ended_workers, start_series
from cache_dit_serving.jobs.shared import CallerCounts, shared_folder
from cache_dit_serving.logs import configure_logs
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.pipeline.environment import library_versions
from cache_dit_serving.pipeline.shared_weights import SharedWeights
from cache_dit_serving.ranks.ranked import RankedRunner
from cache_dit_serving.schemas.answers import (
    FlushResponse,
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
    safety_or_exit,
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
SAFETY = safety_or_exit(SETTINGS.safety)
take_share(SETTINGS, server_context.worker_index)
SHARED = SharedWeights()
# By default BentoML and BentoCloud end requests after 60 s. This is later than our own timeout, whose answer says why.
TIMEOUT_S = max(model.settings.limits.max_request_s for model in RESOLVED.models) + 60


def loading(model: NamedModel) -> Load:
    """Return the functions that load a model."""
    if model.settings.parallelism:
        return Load(partial(RankedRunner.start, model.settings))
    load = partial(assemble, model.settings, shared=SHARED.of(model.name) if len(RESOLVED.models) > 1 else None)
    return Load(load, again=load)


# BentoML 1.4.39 puts build-essential and git into the image of every distribution that it knows, and
# `docker.dockerfile_template` falls back to its older format. Every requirement is a wheel, so an unnamed distribution
# with the base image of bentofile.yaml needs neither.
IMAGE = bentoml.images.Image(base_image="python:3.11-slim", distro="", python_version="3.11")


@bentoml.service(
    name="cache_dit_serving",
    image=IMAGE,
    resources={"gpu": SETTINGS.server.workers * SETTINGS.gpus_per_worker},
    workers=SETTINGS.server.workers,
    traffic={"timeout": TIMEOUT_S},
    tracing=tracing_options(SETTINGS.server),
)
@bentoml.asgi_app(mounted_routes(), path="/")
class CacheDiTServing:
    """Diffusion transformers accelerated by cache-dit."""

    def __init__(self) -> None:
        hold_folder_of_server()
        forget_ended_workers()
        start_series(library_versions())
        start_http_series()
        start_spans(SETTINGS.server)
        models = models_of(RESOLVED, loading, COUNTS, lambda: CacheDiTServing.url, SAFETY)
        self.thread = models.thread
        self.parts = Parts.over(models)
        ACCESS.share(self.parts.engine.limits)
        self.parts.recent_warnings.listen()
        drain_on_signals(self.thread, SETTINGS.server.drain_s, self.parts.engine.decoding.close)
        # The models load on the pipeline's thread, so that /livez and /health answer during the load.
        self.thread.start()

    async def __is_ready__(self) -> bool:
        return self.parts.models.ready

    async def __is_alive__(self) -> bool:
        return not self.thread.stalled

    @bentoml.api(**specs("generate"))
    @answers_errors
    async def generate(self, ctx: bentoml.Context, **fields: Any) -> Response:
        """Draw images from a prompt."""
        return await self.parts.generate(state_of(ctx.request.scope).asked(GenerateRequest), ctx)

    @bentoml.api(**specs("compare"))
    @answers_errors
    async def compare(self, ctx: bentoml.Context, **fields: Any) -> Response:
        """Draw one seed with and without the cache, and measure the difference."""
        request = state_of(ctx.request.scope).asked(GenerateRequest)
        return answered(await self.parts.compare(request, ctx.request))

    @bentoml.api(**specs("health"))
    @answers_errors
    async def health(self, ctx: bentoml.Context) -> HealthResponse:
        """Report whether the server can generate, and the reason if not."""
        return self.parts.models.health()

    @bentoml.api(**specs("model_info"))
    @answers_errors
    async def model_info(self, ctx: bentoml.Context) -> ModelInfo:
        """Describe the loaded model, its fields and its limits."""
        return self.parts.models.model_info(await self.parts.chosen(ctx.request))

    @bentoml.api(**specs("flush_cache"))
    @answers_errors
    async def flush_cache(self, ctx: bentoml.Context) -> FlushResponse:
        """Free the cached activations."""
        return await self.parts.models.flush_cache(ctx.request.query_params.get("model"))

    @bentoml.on_startup
    async def startup(self) -> None:
        self.parts.desk.start()

    @bentoml.on_shutdown
    async def shutdown(self) -> None:
        await self.parts.close(TIMEOUT_S)
        await asyncio.to_thread(send_last_spans, SETTINGS.server)


if SETTINGS.server.cors_origins:
    # Outermost, because a browser sends no key with its preflight request and must be able to read errors too.
    CacheDiTServing.add_asgi_middleware(CORSMiddleware, **cors_options(SETTINGS.server.cors_origins))
CacheDiTServing.add_asgi_middleware(Envelope, limits=SETTINGS.limits, server=SETTINGS.server, access=ACCESS)
