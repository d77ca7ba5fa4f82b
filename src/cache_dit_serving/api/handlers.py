"""Handlers of the routes beside the `@bentoml.api` methods, which are POST only."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TypeVar

import bentoml
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from cache_dit_serving.api.answering import JSON, answered
from cache_dit_serving.api.jobs import UNSIGNED, JobsApi
from cache_dit_serving.api.openai import Served
from cache_dit_serving.api.openai_images import OpenAiImages
from cache_dit_serving.api.openai_videos import VideosApi
from cache_dit_serving.api.request_state import state_of
from cache_dit_serving.engine.engine import Engine
from cache_dit_serving.engine.job_desk import JobDesk
from cache_dit_serving.errors import InvalidRequest, Unauthorized
from cache_dit_serving.jobs.metrics import of_all_workers
from cache_dit_serving.media.outputs import Stored
from cache_dit_serving.schemas.openai import ImageEdit, ImageGeneration, VideoCreation
from cache_dit_serving.schemas.request import JobRequest

T = TypeVar("T")


async def health(request: Request) -> Response:
    return answered(_engine().health())


async def model_info(request: Request) -> Response:
    return answered(_engine().model_info())


async def capabilities(request: Request) -> Response:
    return answered(_engine().capabilities())


async def loras(request: Request) -> Response:
    return answered(_engine().loras())


async def load_lora(request: Request) -> Response:
    return answered(await _engine().load_lora(request.path_params["path"]))


async def unload_lora(request: Request) -> Response:
    return answered(await _engine().unload_lora(request.path_params["path"]))


async def submit_job(request: Request) -> Response:
    return await _jobs().accepted(state_of(request.scope).asked(JobRequest), request)


async def list_jobs(request: Request) -> Response:
    return answered(await _jobs().list(request.query_params, state_of(request.scope).caller))


async def job(request: Request) -> Response:
    answer = await _jobs().now(request.path_params["id"], state_of(request.scope).caller)
    return answered(answer)


async def delete_job(request: Request) -> Response:
    return answered(await _jobs().delete(request.path_params["id"], state_of(request.scope).caller))


async def job_output(request: Request) -> Response:
    params, caller = request.path_params, state_of(request.scope).caller
    return _sent(await _service(JobDesk, "desk").output(params["id"], params["number"], caller))


async def job_events(request: Request) -> Response:
    return await _jobs().events(request.path_params["id"], request)


async def models(request: Request) -> Response:
    return answered(_service(Served, "served").listed())


async def model(request: Request) -> Response:
    return answered(_service(Served, "served").one(request.path_params["path"]))


async def images_generations(request: Request) -> Response:
    return await _images().image(state_of(request.scope).asked(ImageGeneration), request)


async def images_edits(request: Request) -> Response:
    return await _images().image(state_of(request.scope).asked(ImageEdit), request)


async def images_variations(request: Request) -> Response:
    raise InvalidRequest("variations are not supported; /v1/images/edits takes a picture and a prompt")


async def create_video(request: Request) -> Response:
    body = state_of(request.scope).asked(VideoCreation)
    return answered(await _videos().create_video(body, request))


async def videos(request: Request) -> Response:
    answer = await _videos().videos(request.query_params, state_of(request.scope).caller)
    return answered(answer)


async def video(request: Request) -> Response:
    answer = await _videos().video(request.path_params["id"], state_of(request.scope).caller)
    return answered(answer)


async def delete_video(request: Request) -> Response:
    answer = await _videos().delete_video(request.path_params["id"], state_of(request.scope).caller)
    return answered(answer)


async def video_content(request: Request) -> Response:
    params, caller = request.path_params, state_of(request.scope).caller
    return _sent(await _videos().content(params["id"], request.query_params, caller))


async def remix_video(request: Request) -> Response:
    raise InvalidRequest("a video cannot be remixed; POST /v1/videos with another prompt")


async def outputs(request: Request) -> Response:
    name, outputs = request.path_params["path"], _engine().outputs
    if not state_of(request.scope).caller.admin and not await asyncio.to_thread(
        outputs.is_signed, name, request.query_params
    ):
        raise Unauthorized(UNSIGNED)
    return _sent(await asyncio.to_thread(outputs.find, name))


async def metrics(request: Request) -> Response:
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(await asyncio.to_thread(lambda: encode(of_all_workers())), media_type=media_type)


async def openapi(request: Request) -> Response:
    return Response(request.app.state.openapi, media_type=JSON)


def _sent(output: Stored) -> Response:
    if isinstance(output.place, Path):
        headers = {"X-Content-Type-Options": "nosniff"}
        return FileResponse(output.place, media_type=output.media_type, headers=headers)
    # To be asked for again each time: the URL is valid for a while only.
    return RedirectResponse(output.place, 307, headers={"Cache-Control": "no-store"})


def _jobs() -> JobsApi:
    return _service(JobsApi, "jobs")


def _images() -> OpenAiImages:
    return _service(OpenAiImages, "images")


def _videos() -> VideosApi:
    return _service(VideosApi, "videos")


def _engine() -> Engine:
    return _service(Engine, "engine")


def _service(kind: type[T], name: str) -> T:
    """A part of the service, once there is one."""
    part = getattr(bentoml.get_current_service(), name)
    assert isinstance(part, kind)
    return part
