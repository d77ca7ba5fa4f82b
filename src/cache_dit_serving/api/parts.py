"""Parts of one worker's API, which its handlers call."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import bentoml
from starlette.requests import Request
from starlette.responses import Response

from cache_dit_serving.api.answering import answered
from cache_dit_serving.api.evidence_headers import evidence_headers
from cache_dit_serving.api.file_answers import FileAnswers, wanted_file
from cache_dit_serving.api.job_parameters import prefers_job
from cache_dit_serving.api.jobs import JobsApi
from cache_dit_serving.api.lifecycle import end_process
from cache_dit_serving.api.openai import Served
from cache_dit_serving.api.openai_images import OpenAiImages
from cache_dit_serving.api.openai_videos import VideosApi
from cache_dit_serving.api.receive import received
from cache_dit_serving.api.recent_warnings import RecentWarnings
from cache_dit_serving.engine.engine import Engine
from cache_dit_serving.engine.job_desk import JobDesk
from cache_dit_serving.engine.models import Models
from cache_dit_serving.schemas.answers import CompareResponse
from cache_dit_serving.schemas.request import GenerateRequest


@dataclass(frozen=True)
class Parts:
    """The models, and one part for each dialect over them."""

    models: Models
    files: FileAnswers
    desk: JobDesk
    jobs: JobsApi
    served: Served
    images: OpenAiImages
    videos: VideosApi
    recent_warnings: RecentWarnings

    @classmethod
    def over(cls, models: Models) -> Parts:
        """Make the parts of a server's models."""
        desk = JobDesk(models)
        jobs, videos = JobsApi(models, desk), VideosApi(models, desk)
        return cls(
            models, FileAnswers(models), desk, jobs, Served(models), OpenAiImages(models), videos, RecentWarnings()
        )

    @property
    def engine(self) -> Engine:
        """Engine of the default model; its outputs, database and processes are those of all."""
        return self.models.default

    async def generate(self, request: GenerateRequest, ctx: bentoml.Context) -> Response:
        """Generate, and answer as the headers of a request ask: with a job, a file or JSON.

        Raises:
            ServingError: as :meth:`Engine.generate` and :meth:`JobsApi.accepted`.
        """
        http = ctx.request
        if prefers_job(http.headers):
            return await self.jobs.accepted(request, http)
        if (media_type := wanted_file(http.headers)) is not None:
            return await self.files.generated(request, http, media_type)
        engine, request = await self.models.for_request(request)
        answer = await engine.generate(received(request, http))
        return answered(answer, headers=evidence_headers(answer))

    async def compare(self, request: GenerateRequest, http: Request) -> CompareResponse:
        """Draw one seed with and without the cache, and measure the difference.

        Raises:
            ServingError: as :meth:`Models.loaded` and :meth:`Engine.compare`.
        """
        engine = await self.models.loaded(request.model)
        return await engine.compare(received(request, http))

    async def chosen(self, http: Request) -> Engine:
        """Return the engine of the model that a query names, or of the default one, once it is loaded.

        Raises:
            ServingError: as :meth:`Models.loaded`.
        """
        return await self.models.loaded(http.query_params.get("model"))

    async def close(self, within_s: float) -> None:
        """End what runs; the process ends at once if that takes longer than `within_s` seconds."""
        self.engine.decoding.close()
        self.models.thread.drain()
        ended = await asyncio.to_thread(self.models.thread.join, within_s)
        await self.desk.close()
        if not ended:
            end_process()


def parts() -> Parts:
    """Return the parts of this process's service."""
    found = bentoml.get_current_service().parts
    assert isinstance(found, Parts)
    return found
