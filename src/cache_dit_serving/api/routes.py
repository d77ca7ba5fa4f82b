"""The table of routes. Starlette's routes, body checks, the OpenAPI document, `Allow`, metrics and the log read it."""

from __future__ import annotations

import re

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cache_dit_serving.api import handlers
from cache_dit_serving.api.answering import error_response, request_id_of
from cache_dit_serving.api.docs import openapi_document
from cache_dit_serving.api.openai import edit_respelt, video_respelt
from cache_dit_serving.api.operation import BELOW, Errors, JsonBody, Operation
from cache_dit_serving.config.keys import Scope
from cache_dit_serving.errors import (
    CacheNotEngaged,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    KeyReused,
    NotFound,
    NotReady,
    QueueFull,
    RangeNotSatisfiable,
    RunnerLost,
    ServingError,
    StoreUnavailable,
)
from cache_dit_serving.media.formats import MEDIA_TYPES
from cache_dit_serving.schemas.answers import (
    Capabilities,
    CompareResponse,
    FlushResponse,
    GenerateResponse,
    HealthResponse,
    LorasResponse,
    ModelInfo,
)
from cache_dit_serving.schemas.jobs import JobAnswer, JobsResponse
from cache_dit_serving.schemas.openai import (
    DeletedVideo,
    ImageEdit,
    ImageGeneration,
    ImagesResponse,
    OpenAiModel,
    OpenAiModels,
    OpenAiVideo,
    OpenAiVideos,
    VideoCreation,
)
from cache_dit_serving.schemas.request import GenerateRequest, JobRequest, NoFields

UNKNOWN_ROUTE = "unknown"
"""Stands for every path that is no route's."""
GENERATION_ERRORS: Errors = (CacheNotEngaged, QueueFull, InternalError, RunnerLost, NotReady, DeadlineExceeded)
JOB_ERRORS: Errors = (KeyReused, QueueFull, InternalError, NotReady, StoreUnavailable, DeadlineExceeded)

HEALTH = "Whether the server can generate, and why not."
MODEL = "The loaded model and what it takes."
CAPABILITIES = "What this server accepts, for programs."
DRAW = "Generation"
JOBS = "Jobs"
OPENAI = "OpenAI"
KEY = "For a job: the same request with the same key is the same job."
INFRASTRUCTURE = "Infrastructure"
OPERATIONS = (
    Operation(
        "POST",
        "/generate",
        "Draw pictures from a prompt.",
        GenerateResponse,
        (*GENERATION_ERRORS, KeyReused, StoreUnavailable),
        JsonBody(GenerateRequest, "max_upload_bytes", form=True),
        DRAW,
        headers={"Prefer": "respond-async makes it a job.", "Idempotency-Key": KEY},
        also={202: JobAnswer},
    ),
    Operation(
        "POST",
        "/compare",
        "Draw one seed with the cache and without, and measure how far apart the pictures are.",
        CompareResponse,
        GENERATION_ERRORS,
        JsonBody(GenerateRequest, "max_upload_bytes", form=True),
        DRAW,
    ),
    Operation(
        "POST",
        "/jobs",
        "Draw pictures from a prompt, and answer before that is done.",
        JobAnswer,
        JOB_ERRORS,
        JsonBody(JobRequest, "max_upload_bytes", form=True),
        JOBS,
        202,
        handlers.submit_job,
        headers={"Idempotency-Key": KEY},
    ),
    Operation(
        "GET",
        "/jobs",
        "The jobs that are kept, the latest first.",
        JobsResponse,
        (InvalidRequest, StoreUnavailable),
        tag=JOBS,
        handler=handlers.list_jobs,
        query={"state": "Only jobs in it.", "limit": "Jobs on a page, 1 to 100.", "after": "`next` of a page before."},
    ),
    Operation(
        "GET",
        "/jobs/{id}",
        "A job as it is.",
        JobAnswer,
        (NotFound, InternalError, StoreUnavailable),
        tag=JOBS,
        handler=handlers.job,
    ),
    Operation(
        "DELETE",
        "/jobs/{id}",
        "Cancel a job; forget one that has ended, and its files.",
        JobAnswer,
        (NotFound, InternalError, StoreUnavailable),
        tag=JOBS,
        handler=handlers.delete_job,
    ),
    Operation(
        "GET",
        "/jobs/{id}/events",
        "What becomes of a job, as it happens: server-sent events.",
        ("text/event-stream",),
        (InvalidRequest, NotFound, StoreUnavailable),
        tag=JOBS,
        handler=handlers.job_events,
        headers={"Last-Event-ID": "Events up to this one are left out."},
        also={204: None},
    ),
    Operation(
        "GET",
        "/jobs/{id}/outputs/{number}",
        "A file that a job made; the first is 0.",
        tuple(MEDIA_TYPES.values()),
        (NotFound, RangeNotSatisfiable, InternalError, StoreUnavailable),
        tag=JOBS,
        handler=handlers.job_output,
    ),
    Operation(
        "GET",
        "/outputs" + BELOW,
        "A picture that a request wanted as a URL.",
        tuple(MEDIA_TYPES.values()),
        (InvalidRequest, NotFound, RangeNotSatisfiable, InternalError),
        tag=DRAW,
        handler=handlers.outputs,
    ),
    Operation(
        "GET",
        "/capabilities",
        "What this server accepts, for programs.",
        Capabilities,
        (NotReady,),
        handler=handlers.capabilities,
    ),
    Operation("GET", "/loras", "The LoRAs of this server.", LorasResponse, (NotReady,), handler=handlers.loras),
    Operation(
        "POST",
        "/loras" + BELOW,
        "Load a LoRA of the server's folder before a request chooses it.",
        LorasResponse,
        (InvalidRequest, NotFound, NotReady),
        handler=handlers.load_lora,
        scope="admin",
    ),
    Operation(
        "DELETE",
        "/loras" + BELOW,
        "Free the memory of a LoRA of the server's folder; a request that chooses it loads it again.",
        LorasResponse,
        (InvalidRequest, NotFound, NotReady),
        handler=handlers.unload_lora,
        scope="admin",
    ),
    Operation(
        "GET",
        "/v1/models",
        "The model, as OpenAI's API tells it.",
        OpenAiModels,
        (NotReady,),
        tag=OPENAI,
        handler=handlers.models,
    ),
    Operation(
        "GET",
        "/v1/models" + BELOW,
        "One of its names.",
        OpenAiModel,
        (NotFound, NotReady),
        tag=OPENAI,
        handler=handlers.model,
    ),
    Operation(
        "POST",
        "/v1/images/generations",
        "Draw pictures, as OpenAI's API does.",
        ImagesResponse,
        (NotFound, *GENERATION_ERRORS),
        JsonBody(ImageGeneration, "max_upload_bytes", form=True),
        OPENAI,
        handler=handlers.images_generations,
    ),
    Operation(
        "POST",
        "/v1/images/edits",
        "Draw pictures from pictures, as OpenAI's API does.",
        ImagesResponse,
        (NotFound, *GENERATION_ERRORS),
        JsonBody(ImageEdit, "max_upload_bytes", form=True, respelt=edit_respelt),
        OPENAI,
        handler=handlers.images_edits,
    ),
    Operation(
        "POST",
        "/v1/images/variations",
        "Not supported.",
        (),
        (InvalidRequest,),
        tag=OPENAI,
        status=400,
        handler=handlers.images_variations,
    ),
    Operation(
        "POST",
        "/v1/videos",
        "Draw a clip as a job, as OpenAI's API does.",
        OpenAiVideo,
        (NotFound, *JOB_ERRORS),
        JsonBody(VideoCreation, "max_upload_bytes", form=True, respelt=video_respelt),
        OPENAI,
        handler=handlers.create_video,
        headers={"Idempotency-Key": KEY},
    ),
    Operation(
        "GET",
        "/v1/videos",
        "The clips that are kept.",
        OpenAiVideos,
        (InvalidRequest, NotReady, StoreUnavailable),
        tag=OPENAI,
        handler=handlers.videos,
        query={"limit": "Clips on a page, 1 to 100.", "after": "Id of the clip before.", "order": "desc or asc."},
    ),
    Operation(
        "GET",
        "/v1/videos/{id}",
        "A clip as it is.",
        OpenAiVideo,
        (NotFound, NotReady, StoreUnavailable),
        tag=OPENAI,
        handler=handlers.video,
    ),
    Operation(
        "DELETE",
        "/v1/videos/{id}",
        "Cancel a clip, and forget it.",
        DeletedVideo,
        (NotFound, InternalError, StoreUnavailable),
        tag=OPENAI,
        handler=handlers.delete_video,
    ),
    Operation(
        "GET",
        "/v1/videos/{id}/content",
        "A clip's file.",
        tuple(MEDIA_TYPES.values()),
        (InvalidRequest, NotFound, RangeNotSatisfiable, InternalError, StoreUnavailable),
        tag=OPENAI,
        handler=handlers.video_content,
        query={"variant": "video."},
    ),
    Operation(
        "POST",
        "/v1/videos/{id}/remix",
        "Not supported.",
        (),
        (InvalidRequest,),
        tag=OPENAI,
        status=400,
        handler=handlers.remix_video,
    ),
    Operation("GET", "/get_model_info", MODEL, ModelInfo, (NotReady,), handler=handlers.model_info),
    Operation("POST", "/model_info", MODEL, ModelInfo, (NotReady,), JsonBody(NoFields)),
    Operation("GET", "/health", HEALTH, HealthResponse, (NotReady,), handler=handlers.health),
    Operation("POST", "/health", HEALTH, HealthResponse, (NotReady,), JsonBody(NoFields)),
    Operation(
        "POST",
        "/flush_cache",
        "Free the cached activations.",
        FlushResponse,
        (InternalError, NotReady),
        JsonBody(NoFields),
        scope="admin",
    ),
    Operation("GET", "/", "To the API's documentation.", (), status=307, handler=handlers.index),
    Operation("GET", "/docs", "The API's documentation, for people.", ("text/html",), handler=handlers.docs),
    Operation(
        "GET",
        "/openapi.json",
        "The API's documentation, for programs.",
        ("application/json",),
        handler=handlers.openapi,
    ),
    # BentoML's own
    Operation("GET", "/livez", "Whether the worker runs.", tag=INFRASTRUCTURE),
    Operation("GET", "/readyz", "Whether it can generate.", errors=(NotReady,), tag=INFRASTRUCTURE),
    Operation("GET", "/metrics", "Metrics in Prometheus' text format.", tag=INFRASTRUCTURE),
    Operation("GET", "/healthz"),
    Operation("GET", "/docs.json"),
    Operation("GET", "/schema.json"),
    Operation("GET", "/static_content" + BELOW),
)
_BODIES: dict[tuple[str, str], JsonBody | None] = {
    (operation.method, operation.route): operation.body for operation in OPERATIONS
}
_SCOPES: dict[tuple[str, str], Scope] = {
    (operation.method, operation.route): operation.scope for operation in OPERATIONS
}
_ROUTES = {operation.route for operation in OPERATIONS}
_PATTERNS = {
    route: re.compile(re.sub(r"\{\w+\}", "[^/]+", route.replace(BELOW, "/.*"))) for route in _ROUTES if "{" in route
}


def route_of(path: str) -> str:
    """The route of a request's path, or :data:`UNKNOWN_ROUTE`: one of a few names, whatever clients ask for."""
    if path in _ROUTES:
        return path
    return next((route for route, pattern in _PATTERNS.items() if pattern.fullmatch(path)), UNKNOWN_ROUTE)


def scope_of(method: str, route: str) -> Scope:
    """What an API key must be for."""
    return _SCOPES.get((method, route), "generate")


def body_of(method: str, path: str) -> JsonBody | None:
    """What the body of a request must be; None where no body is read."""
    return _BODIES.get((method, path))


def allowed_methods(path: str) -> list[str]:
    """What the `Allow` header of a path lists; empty for a path that is no route's."""
    route = route_of(path)
    methods = [operation.method for operation in OPERATIONS if operation.route == route]
    return sorted({*methods, "HEAD"} if "GET" in methods else methods)


def mounted_routes() -> Starlette:
    """An app to mount at "/", of the rows that have a handler."""

    async def serving_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServingError)
        return error_response(error, request_id_of(request.scope))

    app = Starlette(
        routes=[
            Route(operation.route.replace(BELOW, "/{path:path}"), operation.handler, methods=[operation.method])
            for operation in OPERATIONS
            if operation.handler is not None
        ],
        exception_handlers={ServingError: serving_error},
    )
    # Made once: making it takes 90 ms, and the event loop would wait.
    app.state.openapi = bytes(JSONResponse(openapi_document(OPERATIONS)).body)
    return app
