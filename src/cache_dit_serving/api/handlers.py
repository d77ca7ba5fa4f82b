"""Handlers of the routes beside the `@bentoml.api` methods, which are POST only."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from cache_dit_serving.api.answering import JSON, answered
from cache_dit_serving.api.jobs import UNSIGNED
from cache_dit_serving.api.parts import parts
from cache_dit_serving.api.request_state import state_of
from cache_dit_serving.errors import InvalidRequest, Unauthorized
from cache_dit_serving.jobs.metrics import of_all_workers
from cache_dit_serving.media.outputs import Stored
from cache_dit_serving.pipeline.protocol import WeightsChoice
from cache_dit_serving.schemas.openai import ImageEdit, ImageGeneration, VideoCreation
from cache_dit_serving.schemas.request import JobChange, JobRequest, ReloadRequest, SleepRequest, WakeRequest


class OutputResponse(FileResponse):
    """Answer with the file of an output."""

    # Each chunk takes a hop to a thread and a span of BentoML's tracing: starlette's 64 KiB cost a picture 10 ms.
    chunk_size = 1 << 20


async def health(request: Request) -> Response:
    return answered(parts().models.health())


async def model_info(request: Request) -> Response:
    return answered(parts().models.model_info(await parts().chosen(request)))


async def capabilities(request: Request) -> Response:
    return answered((await parts().chosen(request)).capabilities())


async def quality(request: Request) -> Response:
    caller, base_url = state_of(request.scope).caller, str(request.base_url)
    return answered(await (await parts().chosen(request)).quality_report(caller, base_url))


async def offer_speed_again(request: Request) -> Response:
    await (await parts().chosen(request)).quality.restore(request.path_params["speed"])
    return await quality(request)


async def loras(request: Request) -> Response:
    return answered((await parts().chosen(request)).loras())


async def load_lora(request: Request) -> Response:
    return answered(await (await parts().chosen(request)).load_lora(request.path_params["path"]))


async def unload_lora(request: Request) -> Response:
    return answered(await (await parts().chosen(request)).unload_lora(request.path_params["path"]))


async def sleep(request: Request) -> Response:
    wanted = state_of(request.scope).asked(SleepRequest)
    return answered(await parts().models.sleep(wanted.model, wanted.level))


async def wake(request: Request) -> Response:
    engine = await parts().models.loaded(state_of(request.scope).asked(WakeRequest).model)
    return answered(await engine.wake())


async def reload(request: Request) -> Response:
    wanted = state_of(request.scope).asked(ReloadRequest)
    choice = WeightsChoice(wanted.folder, wanted.sha256)
    engine = await parts().models.loaded(request.path_params["name"], param="name")
    return answered(await engine.reload(choice))


async def submit_job(request: Request) -> Response:
    return await parts().jobs.accepted(state_of(request.scope).asked(JobRequest), request)


async def list_jobs(request: Request) -> Response:
    return answered(await parts().jobs.list(request.query_params, state_of(request.scope).caller))


async def job(request: Request) -> Response:
    answer = await parts().jobs.now(request.path_params["id"], state_of(request.scope).caller)
    return answered(answer)


async def change_job(request: Request) -> Response:
    state = state_of(request.scope)
    return answered(await parts().jobs.change(request.path_params["id"], state.asked(JobChange), state.caller))


async def delete_job(request: Request) -> Response:
    return answered(await parts().jobs.delete(request.path_params["id"], state_of(request.scope).caller))


async def job_output(request: Request) -> Response:
    params, caller = request.path_params, state_of(request.scope).caller
    return _sent(await parts().desk.output(params["id"], params["number"], caller))


async def job_events(request: Request) -> Response:
    return await parts().jobs.events(request.path_params["id"], request)


async def models(request: Request) -> Response:
    return answered(parts().served.listed())


async def model(request: Request) -> Response:
    return answered(parts().served.one(request.path_params["path"]))


async def images_generations(request: Request) -> Response:
    return await parts().images.image(state_of(request.scope).asked(ImageGeneration), request)


async def images_edits(request: Request) -> Response:
    return await parts().images.image(state_of(request.scope).asked(ImageEdit), request)


async def images_variations(request: Request) -> Response:
    raise InvalidRequest("variations are not supported; /v1/images/edits takes a picture and a prompt")


async def create_video(request: Request) -> Response:
    body = state_of(request.scope).asked(VideoCreation)
    return answered(await parts().videos.create_video(body, request))


async def videos(request: Request) -> Response:
    answer = await parts().videos.videos(request.query_params, state_of(request.scope).caller)
    return answered(answer)


async def video(request: Request) -> Response:
    answer = await parts().videos.video(request.path_params["id"], state_of(request.scope).caller)
    return answered(answer)


async def delete_video(request: Request) -> Response:
    answer = await parts().videos.delete_video(request.path_params["id"], state_of(request.scope).caller)
    return answered(answer)


async def video_content(request: Request) -> Response:
    params, caller = request.path_params, state_of(request.scope).caller
    return _sent(await parts().videos.content(params["id"], request.query_params, caller))


async def remix_video(request: Request) -> Response:
    raise InvalidRequest("a video cannot be remixed; POST /v1/videos with another prompt")


async def outputs(request: Request) -> Response:
    name, outputs = request.path_params["path"], parts().engine.outputs
    if not state_of(request.scope).caller.admin and not await asyncio.to_thread(
        outputs.is_signed, name, request.query_params
    ):
        raise Unauthorized(UNSIGNED)
    return _sent(await asyncio.to_thread(outputs.find, name))


async def metrics(request: Request) -> Response:
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(await asyncio.to_thread(lambda: encode(of_all_workers())), media_type=media_type)


async def recent_warnings(request: Request) -> Response:
    return answered(parts().recent_warnings.answer())


async def openapi(request: Request) -> Response:
    return Response(await asyncio.to_thread(request.app.state.openapi), media_type=JSON)


def _sent(output: Stored) -> Response:
    if isinstance(output.place, Path):
        headers = {"X-Content-Type-Options": "nosniff"}
        return OutputResponse(output.place, media_type=output.media_type, headers=headers)
    # To be asked for again each time: the URL is valid for a while only.
    return RedirectResponse(output.place, 307, headers={"Cache-Control": "no-store"})
