"""Table of routes: the only place that says which there are, and all that the server knows of each.

:mod:`api.matching` finds the row of a request; :mod:`api.docs` describes all. Keys, body checks and log read them too.
"""

from __future__ import annotations

from cache_dit_serving.api import examples, handlers, page
from cache_dit_serving.api.job_parameters import MOST_PREVIEWS
from cache_dit_serving.api.openai_dialect import edit_respelt, generation_respelt, video_respelt
from cache_dit_serving.api.operation import (
    BELOW,
    UNSUPPORTED_FIELDS_HEADER,
    Errors,
    FormFile,
    JsonBody,
    Operation,
    OtherAnswer,
)
from cache_dit_serving.engine.inputs import CONTROL, IMAGES, LAST_IMAGE, MASK, VIDEO
from cache_dit_serving.errors import (
    CacheNotEngaged,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    JobNotQueued,
    KeyReused,
    NotFound,
    NotReady,
    QueueFull,
    RangeNotSatisfiable,
    RateLimited,
    RunnerLost,
    StoreUnavailable,
)
from cache_dit_serving.media.kinds import MEDIA_TYPES
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
from cache_dit_serving.schemas.log import LoggedWarnings
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
from cache_dit_serving.schemas.request import GenerateRequest, JobChange, JobRequest, NoFields

GENERATION_ERRORS: Errors = (CacheNotEngaged, QueueFull, InternalError, RunnerLost, NotReady, DeadlineExceeded)
JOB_ERRORS: Errors = (KeyReused, QueueFull, InternalError, NotReady, StoreUnavailable, DeadlineExceeded)

HEALTH = "Whether the server can generate, and why not."
MODEL = "The loaded model and what it takes."
DRAW = "Generation"
JOBS = "Jobs"
OPENAI = "OpenAI"
INFRASTRUCTURE = "Infrastructure"
"""Tag of the routes that probes and scrapers call."""
PROBED = (200, 503)
"""Statuses by which a probe learns the server's state."""
IMAGE_FILE = FormFile("image", IMAGES, many=True, also=("input_reference",))
MASK_FILE = FormFile("mask", MASK)
FORM_FILES = (
    IMAGE_FILE,
    MASK_FILE,
    FormFile("control", CONTROL),
    FormFile("last_image", LAST_IMAGE),
    FormFile("video", VIDEO, media_type="video/*"),
)
"""Files of this server's own requests."""
FIRST_PICTURE = FormFile("input_reference", IMAGES, also=("image", "image[]", f"{IMAGES}[]"))
"""File of OpenAI's videos."""
OUTPUT = tuple(MEDIA_TYPES.values())
OF_OUTPUTS = {
    206: OtherAnswer("The part that the header Range asks for.", OUTPUT),
    307: OtherAnswer("It lies in object storage, at the URL of the header Location."),
}
"""Other answers of a route that answers a file."""
OPENAI_BASE = "/v1"
"""Path below which OpenAI's routes lie: its clients have it at the end of their base URL."""
TEXT_ROUTES = tuple(f"{OPENAI_BASE}/{name}" for name in ("chat/completions", "completions", "responses", "embeddings"))
"""Routes of OpenAI's text models, which clients ask for by mistake."""
METRICS = "/metrics"
IDEMPOTENCY_HEADER = "For a job: the same request with the same key is the same job."
OPERATIONS = (
    Operation(
        "POST",
        "/generate",
        "Draw pictures from a prompt.",
        GenerateResponse,
        (*GENERATION_ERRORS, KeyReused, StoreUnavailable),
        JsonBody(GenerateRequest, examples.IMAGE, "max_upload_bytes", FORM_FILES),
        DRAW,
        headers={"Prefer": "respond-async makes it a job.", "Idempotency-Key": IDEMPOTENCY_HEADER},
        also={202: OtherAnswer("As asked by the header.", JobAnswer)},
        files=OUTPUT,
        generates=True,
    ),
    Operation(
        "POST",
        "/compare",
        "Draw one seed with the cache and without, and measure how far apart the pictures are.",
        CompareResponse,
        GENERATION_ERRORS,
        JsonBody(GenerateRequest, examples.COMPARISON, "max_upload_bytes", FORM_FILES),
        DRAW,
        generates=True,
    ),
    Operation(
        "POST",
        "/jobs",
        "Draw pictures from a prompt, and answer before that is done.",
        JobAnswer,
        JOB_ERRORS,
        JsonBody(JobRequest, examples.IMAGE, "max_upload_bytes", FORM_FILES),
        JOBS,
        202,
        handlers.submit_job,
        headers={"Idempotency-Key": IDEMPOTENCY_HEADER},
        generates=True,
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
        "PATCH",
        "/jobs/{id}",
        "Change the priority of a job that waits.",
        JobAnswer,
        (NotFound, JobNotQueued, InternalError, StoreUnavailable),
        JsonBody(JobChange, examples.PRIORITY),
        JOBS,
        handler=handlers.change_job,
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
        (InvalidRequest, NotFound, RateLimited, StoreUnavailable),
        tag=JOBS,
        handler=handlers.job_events,
        signed=True,
        headers={
            "Last-Event-ID": "Events up to this one are left out.",
            UNSUPPORTED_FIELDS_HEADER: "warn: previews that cannot be made are reported by an event; refuse: with 400.",
        },
        query={
            "previews": f"Previews among the events, 0 to {MOST_PREVIEWS}.",
            "expires": "With `signature`, in place of a key: `events` of GET /jobs/{id} has both.",
            "signature": "See `expires`.",
        },
        also={204: OtherAnswer("As asked by the header.")},
    ),
    Operation(
        "GET",
        "/jobs/{id}/outputs/{number}",
        "A file that a job made; the first is 0.",
        OUTPUT,
        (NotFound, RangeNotSatisfiable, InternalError, StoreUnavailable),
        tag=JOBS,
        handler=handlers.job_output,
        also=OF_OUTPUTS,
    ),
    Operation(
        "GET",
        "/outputs" + BELOW,
        "A picture that a request wanted as a URL.",
        OUTPUT,
        (InvalidRequest, NotFound, RangeNotSatisfiable, InternalError),
        tag=DRAW,
        handler=handlers.outputs,
        signed=True,
        also=OF_OUTPUTS,
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
        JsonBody(ImageGeneration, examples.IMAGE, "max_upload_bytes", (), generation_respelt),
        OPENAI,
        handler=handlers.images_generations,
        generates=True,
    ),
    Operation(
        "POST",
        "/v1/images/edits",
        "Draw pictures from pictures, as OpenAI's API does.",
        ImagesResponse,
        (NotFound, *GENERATION_ERRORS),
        JsonBody(ImageEdit, examples.EDIT, "max_upload_bytes", (IMAGE_FILE, MASK_FILE), edit_respelt),
        OPENAI,
        handler=handlers.images_edits,
        generates=True,
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
        JsonBody(VideoCreation, examples.IMAGE, "max_upload_bytes", (FIRST_PICTURE,), video_respelt),
        OPENAI,
        handler=handlers.create_video,
        headers={"Idempotency-Key": IDEMPOTENCY_HEADER},
        generates=True,
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
        OUTPUT,
        (InvalidRequest, NotFound, RangeNotSatisfiable, InternalError, StoreUnavailable),
        tag=OPENAI,
        handler=handlers.video_content,
        query={"variant": "video."},
        also=OF_OUTPUTS,
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
    Operation("POST", "/model_info", MODEL, ModelInfo, (NotReady,), JsonBody(NoFields, examples.NOTHING)),
    Operation(
        "GET",
        "/health",
        HEALTH,
        HealthResponse,
        (NotReady,),
        handler=handlers.health,
        open_as="health",
        routine=PROBED,
    ),
    Operation(
        "POST",
        "/health",
        HEALTH,
        HealthResponse,
        (NotReady,),
        JsonBody(NoFields, examples.NOTHING),
        open_as="health",
        routine=PROBED,
    ),
    Operation(
        "POST",
        "/flush_cache",
        "Free the cached activations.",
        FlushResponse,
        (InternalError, NotReady),
        JsonBody(NoFields, examples.NOTHING),
        scope="admin",
    ),
    Operation(
        "GET",
        "/log/warnings",
        "The warnings and errors of the last hour, without the values in them.",
        LoggedWarnings,
        handler=handlers.recent_warnings,
        scope="admin",
    ),
    Operation(
        "GET",
        "/",
        "To the playground.",
        (),
        status=307,
        handler=page.index,
        open_as="docs",
    ),
    Operation(
        "GET",
        "/ui",
        "The playground: draw in a browser, and see what the cache does.",
        ("text/html",),
        handler=page.playground,
        open_as="docs",
    ),
    Operation(
        "GET",
        "/ui" + BELOW,
        "A file of the playground; `client.js` is a client for other pages.",
        ("text/javascript", "text/css"),
        (NotFound,),
        handler=page.playground_file,
        open_as="docs",
    ),
    Operation(
        "GET",
        "/docs",
        "The API's documentation, for people.",
        ("text/html",),
        handler=page.docs,
        open_as="docs",
    ),
    Operation(
        "GET",
        "/openapi.json",
        "The API's documentation, for programs.",
        ("application/json",),
        handler=handlers.openapi,
        open_as="docs",
    ),
    Operation(
        "GET",
        "/docs.js",
        handler=page.docs_script,
        open_as="docs",
    ),
    Operation(
        "GET",
        "/favicon.ico",
        handler=page.favicon,
        open_as="docs",
        routine=range(200, 600),
    ),
    # BentoML's own
    Operation(
        "GET",
        "/livez",
        "Whether the worker runs, and its pipeline does not stand still.",
        errors=(NotReady,),
        tag=INFRASTRUCTURE,
        open_as="health",
        any_host=True,
        routine=PROBED,
    ),
    Operation(
        "GET",
        "/readyz",
        "Whether it can generate.",
        errors=(NotReady,),
        tag=INFRASTRUCTURE,
        open_as="health",
        any_host=True,
        routine=PROBED,
    ),
    Operation(
        "GET",
        METRICS,
        "Metrics in Prometheus' text format, or as OpenMetrics: as Accept asks.",
        ("text/plain", "application/openmetrics-text"),
        tag=INFRASTRUCTURE,
        handler=handlers.metrics,
        open_as="metrics",
        any_host=True,
        routine=PROBED,
    ),
    Operation(
        "GET",
        "/healthz",
        tag=INFRASTRUCTURE,
        open_as="health",
        any_host=True,
        routine=PROBED,
    ),
    Operation("GET", "/docs.json", open_as="docs"),
    Operation("GET", "/schema.json", open_as="docs"),
    Operation("GET", "/static_content" + BELOW, open_as="docs"),
)
