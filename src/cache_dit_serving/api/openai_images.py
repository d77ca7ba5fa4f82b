"""Images by OpenAI's API, drawn while the client waits."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from cache_dit_serving.api import sse
from cache_dit_serving.api.answering import answered
from cache_dit_serving.api.evidence_headers import cache_headers
from cache_dit_serving.api.openai_quality import QUALITY_OF, choose_speed
from cache_dit_serving.api.receive import received
from cache_dit_serving.engine.engine import Engine
from cache_dit_serving.engine.models import Models
from cache_dit_serving.engine.preparation import Prepared
from cache_dit_serving.engine.previews import possible
from cache_dit_serving.engine.sent_as import SentAs
from cache_dit_serving.errors import InternalError, InvalidRequest, ServingError
from cache_dit_serving.jobs.generation import OutputFile
from cache_dit_serving.jobs.wanted_previews import WantedPreviews
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.schemas.answers import GenerateResponse, RequestWarning
from cache_dit_serving.schemas.openai import Evidence, ImageEdit, ImageGeneration, ImagesResponse, OpenAiImage

logger = logging.getLogger(__name__)

NO_TOKENS = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}
"""OpenAI's SDK wants them; nothing is counted in tokens here."""


class OpenAiImages:
    """/v1/images, over the same queue as /generate."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def image(self, body: ImageGeneration, http: Request) -> Response:
        """Draw, and answer with the images, or with events as they come about.

        Raises:
            ServingError: as /generate.
        """
        engine, asked = await self._models.for_request(body.asked())
        if engine.worker.loaded().model.traits.makes is not MediaKind.IMAGE:
            raise InvalidRequest("this model makes no pictures; GET /capabilities tells what it does", param="model")
        intake = received(asked, http, mask_kind="holed mask")
        resolved = engine.resolve(intake)
        quality = choose_speed(body.quality, resolved.request, resolved.model.speeds)
        if quality.speed is not None:
            resolved = resolved.at_speed(quality.speed)
        prepared = await engine.prepare(intake, resolved)
        warnings, previews = [*quality.warnings, *body.warnings()], None
        if body.wanted_previews:
            why_none = engine.no_previews(prepared.generation)
            wanted = possible(body.wanted_previews, "partial_images", why_none, lenient=intake.lenient)
            warnings += wanted.warnings
            previews = prepared.generation.want_previews(wanted.count) if wanted.count else None
        notes = _Notes(warnings, intake.sent_as)
        await engine.submit(prepared)
        if body.stream:
            return sse.EventStream(_streamed(engine, prepared, _Stream(body, prepared, previews, notes)))
        images = await engine.wait(prepared, intake.left())
        response, _ = await engine.deliver(prepared, images)
        evidence = notes.added_to(response)
        answer = ImagesResponse(
            created=int(time.time()),
            output_format=body.format,
            size=_size_of(images[0].content),
            quality=QUALITY_OF.get(evidence.cache.speed),
            data=[
                OpenAiImage(url=text) if body.wants_urls else OpenAiImage(b64_json=text)
                for text in response.images or ()
            ],
            cache_dit=evidence,
        )
        return answered(answer, headers=cache_headers(evidence.cache))


def _streamed(engine: Engine, prepared: Prepared, stream: _Stream) -> AsyncIterator[bytes]:
    """Previews, then the images, or the error, as OpenAI's events."""
    loop, generation = asyncio.get_running_loop(), prepared.generation
    changed, left = asyncio.Event(), asyncio.Event()

    def wake() -> None:
        loop.call_soon_threadsafe(changed.set)

    generation.listen(wake)
    # Begun here: what has not begun when its client goes would never end.
    drawing = asyncio.create_task(engine.wait(prepared, _first(prepared.intake.left(), left.wait())))
    drawing.add_done_callback(lambda _: changed.set())
    return _told(engine, prepared, stream, drawing, changed=changed, left=left)


async def _told(
    engine: Engine,
    prepared: Prepared,
    stream: _Stream,
    drawing: asyncio.Task[list[OutputFile]],
    *,
    changed: asyncio.Event,
    left: asyncio.Event,
) -> AsyncIterator[bytes]:
    generation = prepared.generation
    try:
        while not drawing.done():
            changed.clear()
            for event in stream.partial():
                yield event
            try:
                await asyncio.wait_for(changed.wait(), sse.HEART_BEAT_S)
            except TimeoutError:
                yield sse.heart_beat()
        for event in stream.partial():
            yield event
        images = drawing.result()
        response, _ = await engine.deliver(prepared, images)
        for event in stream.completed(images, response):
            yield event
    except ServingError as error:
        yield _event("error", error.body(generation.id))
    except Exception:
        logger.exception("%s failed in its stream", generation.id)
        yield _event("error", InternalError().body(generation.id))
    finally:
        left.set()  # the client may have gone


@dataclass(frozen=True)
class _Notes:
    """Warnings of this dialect, and the names that the client knows."""

    warnings: list[RequestWarning]
    sent_as: SentAs

    def added_to(self, response: GenerateResponse, *further: RequestWarning) -> Evidence:
        """The evidence of an answer with all warnings."""
        evidence = Evidence.of(response)
        warnings = [*self.warnings, *further, *evidence.warnings]
        return evidence.model_copy(update={"warnings": [self.sent_as.warning(warning) for warning in warnings]})


class _Stream:
    """The images of an answer in OpenAI's events."""

    def __init__(self, body: ImageGeneration, prepared: Prepared, wanted: WantedPreviews | None, notes: _Notes) -> None:
        self._kind = "image_edit" if isinstance(body, ImageEdit) else "image_generation"
        self._format = body.format
        self._wanted = wanted
        self._quality = QUALITY_OF.get(prepared.generation.planned.cache.speed, "auto")
        self._notes = notes
        self._shown = 0

    def partial(self) -> Iterator[bytes]:
        """Previews that the stream has not had."""
        for preview in self._wanted.take() if self._wanted is not None else ():
            data = {"partial_image_index": self._shown, "b64_json": preview.image}
            self._shown += 1
            yield _event(
                f"{self._kind}.partial_image", data | self._about(base64.b64decode(preview.image), preview.format)
            )

    def completed(self, images: list[OutputFile], response: GenerateResponse) -> Iterator[bytes]:
        """The images themselves, after all previews."""
        missing = self._wanted.missing("partial_images") if self._wanted is not None else []
        evidence = json.loads(self._notes.added_to(response, *missing).model_dump_json())
        for image, text in zip(images, response.images or (), strict=True):
            data = {"b64_json": text, "usage": NO_TOKENS, "cache_dit": evidence}
            yield _event(f"{self._kind}.completed", data | self._about(image.content, self._format))

    def _about(self, content: bytes, extension: str) -> dict[str, Any]:
        """Return the fields of each of OpenAI's events that describe its image."""
        return {
            "created_at": int(time.time()),
            "background": "opaque",
            "output_format": extension,
            "quality": self._quality,
            "size": _size_of(content),
        }


async def _first(*awaited: Coroutine[Any, Any, object]) -> None:
    """Wait until the first of them is done, and cancel the others."""
    tasks = [asyncio.ensure_future(each) for each in awaited]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _event(kind: str, data: dict[str, Any]) -> bytes:
    """Return an event of OpenAI's, whose data names its kind too."""
    return sse.event(kind, to_json({"type": kind, **data}).decode())


def _size_of(content: bytes) -> str:
    with Image.open(io.BytesIO(content)) as image:
        return "{}x{}".format(*image.size)
