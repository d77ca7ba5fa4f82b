"""Videos by OpenAI's API: each is a job."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from starlette.requests import Request

from cache_dit_serving.api.job_parameters import idempotency_key, limit_of
from cache_dit_serving.api.receive import received
from cache_dit_serving.engine.caller import Caller
from cache_dit_serving.engine.idempotency import admit_once
from cache_dit_serving.engine.job_desk import JobDesk
from cache_dit_serving.engine.models import Models
from cache_dit_serving.errors import InvalidRequest, NotFound
from cache_dit_serving.findings import cut
from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.jobs.store.exchanged import Page
from cache_dit_serving.media.outputs import Stored
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.planning.fields.size import Height, Width
from cache_dit_serving.planning.fields.video import fitting_frames, fps_of, frames_of
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.schemas.answers import ErrorDetail, GenerateResponse
from cache_dit_serving.schemas.jobs import JobState
from cache_dit_serving.schemas.openai import (
    DeletedVideo,
    Evidence,
    OpenAiVideo,
    OpenAiVideos,
    VideoCreation,
    VideoError,
)
from cache_dit_serving.schemas.request import GenerateRequest

PREFIX = "video_"
"""Begins the id of a job that is a video of OpenAI's."""
UNKNOWN = "unknown"
"""Length and size of a video whose model this server has not loaded."""


class VideosApi:
    """/v1/videos, over the same jobs as /jobs."""

    def __init__(self, models: Models, desk: JobDesk) -> None:
        settings = models.default.settings
        outputs_s = settings.outputs.keep_s
        self._keep_s = min(settings.limits.keep_jobs_s, outputs_s if outputs_s is not None else math.inf)
        self._desk = desk
        self._models = models

    async def create_video(self, body: VideoCreation, http: Request) -> OpenAiVideo:
        """Admit a video as a job.

        Raises:
            ServingError: as POST /jobs.
        """
        model = (await self._models.loaded(body.model)).worker.loaded().model
        if model.traits.makes is not MediaKind.VIDEO:
            raise InvalidRequest("this model makes no video; GET /capabilities tells what it does", param="model")
        num_frames = None
        if (length_s := body.length_s) is not None:
            num_frames = _frames(length_s, body.fps, model)
        intake = received(body.asked(num_frames), http)
        record, _ = await admit_once(self._desk, intake, idempotency_key(http.headers), PREFIX)
        return self._video(record)

    async def video(self, name: str, caller: Caller) -> OpenAiVideo:
        """
        Raises:
            NotFound: the caller has no such video.
            StoreUnavailable: the database does not answer.
        """
        return self._video(await self._found(name, caller))

    async def videos(self, query: Mapping[str, str], caller: Caller) -> OpenAiVideos:
        """A page of a caller's.

        Raises:
            InvalidRequest: `limit`, `order` or `after` is not what it must be.
            StoreUnavailable: the database does not answer.
        """
        limit, order = limit_of(query), query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise InvalidRequest(f"order is {cut(order)!r}; send asc or desc", param="order")
        page = Page(limit + 1, query.get("after"), prefix=PREFIX, ascending=order == "asc")
        found = await self._desk.page(page, caller)
        videos = [self._video(record) for record in found[:limit]]
        first, last = (videos[0].id, videos[-1].id) if videos else (None, None)
        return OpenAiVideos(data=videos, first_id=first, last_id=last, has_more=len(found) > len(videos))

    async def content(self, name: str, query: Mapping[str, str], caller: Caller) -> Stored:
        """The video's file.

        Raises:
            InvalidRequest: another variant than the video is asked for.
            NotFound: the caller has no such video, or it is not done.
            StoreUnavailable: the database does not answer.
        """
        if (variant := query.get("variant", "video")) != "video":
            raise InvalidRequest(f"variant is {cut(variant)!r}; there is video alone", param="variant")
        await self._found(name, caller)
        return await self._desk.output(name, "0", caller)

    async def delete_video(self, name: str, caller: Caller) -> DeletedVideo:
        """Cancel a video that is not done, and forget it with its file.

        Raises:
            NotFound: the caller has no such video.
            InternalError: its file cannot be deleted.
            StoreUnavailable: the database does not answer.
        """
        record = await self._found(name, caller)
        if not record.state.final:
            record = await self._desk.cancel(name, caller)
        if record.state.final:
            await self._desk.forget(record)
        return DeletedVideo(id=name)

    async def _found(self, name: str, caller: Caller) -> JobRecord:
        if not name.startswith(PREFIX):
            raise NotFound("there is no video of this id")
        return await self._desk.find(name, caller)

    def _video(self, record: JobRecord) -> OpenAiVideo:
        names = ("prompt", "width", "height", "num_frames", "fps")
        asked = GenerateRequest.model_validate({name: record.asked.get(name) for name in names})
        ended = record.history[-1][1] if record.state.final else None
        error = None
        if record.state.final and record.state is not JobState.SUCCEEDED:
            detail = ErrorDetail.model_validate_json(record.error) if record.error is not None else None
            error = VideoError(
                code=detail.code if detail else record.state, message=detail.message if detail else "it was cancelled"
            )
        done = record.state is JobState.SUCCEEDED
        name, model = self._drawn_by(record)
        return OpenAiVideo(
            id=record.id,
            model=name,
            status=_status(record.state),
            progress=100 if done else min(99, 100 * record.step // max(1, record.steps)),
            created_at=int(record.history[0][1]),
            completed_at=int(ended) if ended and done else None,
            expires_at=int(ended + self._keep_s) if ended and done else None,
            seconds=_length(asked, model) if model else UNKNOWN,
            size=_asked_size(asked, model) if model else UNKNOWN,
            prompt=asked.prompt,
            error=error,
            cache_dit=Evidence.of(GenerateResponse.model_validate_json(record.result)) if record.result else None,
        )

    def _drawn_by(self, record: JobRecord) -> tuple[str, PlannedModel | None]:
        """Return the name of a video's model, and the model; None for one that was not loaded since the start.

        Raises:
            NotReady: the only model of this server is not loaded.
        """
        name = record.asked.get("model")
        try:
            engine = self._models.find(name)
        except NotFound:
            return record.asked["model"], None  # under another configuration
        loading = engine.worker.model.loading
        is_known = loading.has_loaded or not self._models.are_several
        return engine.names[0], engine.worker.loaded().model if is_known else None


def _status(state: JobState) -> Literal["queued", "in_progress", "completed", "failed"]:
    match state:
        case JobState.QUEUED:
            return "queued"
        case JobState.RUNNING:
            return "in_progress"
        case JobState.SUCCEEDED:
            return "completed"
        case _:
            return "failed"


def _frames(length_s: float, fps: int | None, model: PlannedModel) -> int:
    """Frames of a video of about that length.

    Raises:
        InvalidRequest: it is shorter than any that the model makes.
    """
    video = model.traits.video
    assert video is not None
    rate = fps_of(GenerateRequest(fps=fps), model)
    frames = round(length_s * rate) + (1 if video.remainder == 1 else 0)
    fitting = fitting_frames(frames, model)
    if fitting is None:
        raise InvalidRequest(f"seconds is less than this model makes at {rate:g} frames a second", param="seconds")
    return fitting


def _length(asked: GenerateRequest, model: PlannedModel) -> str:
    """Seconds of a clip."""
    video = model.traits.video
    remainder = video.remainder if video is not None and video.remainder == 1 else 0
    return f"{(frames_of(asked, model) - remainder) / fps_of(asked, model):.3g}"


def _asked_size(asked: GenerateRequest, model: PlannedModel) -> str:
    width, height = asked.width or Width().default(model), asked.height or Height().default(model)
    return f"{width}x{height}"
