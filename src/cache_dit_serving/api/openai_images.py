"""Images by OpenAI's API, drawn while the client waits."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import math
import time
from collections.abc import AsyncIterator
from typing import Any

from PIL import Image
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from cache_dit_serving.api.native import NativeApi, Prepared, gone
from cache_dit_serving.api.openai import Served
from cache_dit_serving.api.received import received
from cache_dit_serving.errors import InternalError, InvalidRequest, ServingError
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.schemas.answers import GenerateResponse, RequestWarning
from cache_dit_serving.schemas.jobs import JobPreview
from cache_dit_serving.schemas.openai import Evidence, ImageEdit, ImageGeneration, ImagesResponse, OpenAiImage

logger = logging.getLogger(__name__)

HEART_BEAT_S = 10.0
NO_TOKENS = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}
"""OpenAI's SDK wants them; nothing is counted in tokens here."""


class OpenAiImages:
    """/v1/images, over the same queue as /generate."""

    def __init__(self, native: NativeApi, served: Served) -> None:
        self._native = native
        self._served = served

    async def image(self, body: ImageGeneration, http: Request) -> Response:
        """Draw, and answer with the pictures, or with events as they come about.

        Raises:
            ServingError: as /generate.
        """
        self._served.check(body.model)
        if self._served.model.traits.makes is not MediaKind.PICTURE:
            raise InvalidRequest("this model makes no pictures; GET /capabilities tells what it does", param="model")
        prepared = await self._native.begin(received(body.asked(), http))
        if body.stream:
            stream = self._streamed(prepared, body)
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
        images = await self._native.drawn(prepared, gone(http))
        response, _ = await self._native.finish(prepared, images)
        evidence = self._evidence(response, body.warnings())
        as_url = body.response_format == "url"
        answer = ImagesResponse(
            created=int(time.time()),
            output_format=body.format,
            size=_size_of(images[0].content),
            data=[OpenAiImage(url=text) if as_url else OpenAiImage(b64_json=text) for text in response.images or ()],
            cache_dit=evidence,
        )
        return Response(answer.model_dump_json(), media_type="application/json", headers=evidence.headers)

    async def _streamed(self, prepared: Prepared, body: ImageGeneration) -> AsyncIterator[bytes]:
        """Previews, then the pictures, or the error, as OpenAI's events."""
        kind = "image_edit" if isinstance(body, ImageEdit) else "image_generation"
        loop, generation = asyncio.get_running_loop(), prepared.generation
        changed, left = asyncio.Event(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(changed.set)

        generation.changed = wake
        wanted = body.partial_images or 0
        if wanted:
            generation.followed = math.inf
        drawing = asyncio.create_task(self._native.drawn(prepared, left.wait()))
        drawing.add_done_callback(lambda _: changed.set())
        shown: list[JobPreview] = []
        try:
            while not drawing.done():
                changed.clear()
                preview = generation.preview
                if preview is not None and _is_due(preview, shown, wanted):
                    shown.append(preview)
                    told = {"partial_image_index": len(shown) - 1, "b64_json": preview.image}
                    yield _event(f"{kind}.partial_image", told | _about(preview.image, "webp"))
                try:
                    await asyncio.wait_for(changed.wait(), HEART_BEAT_S)
                except TimeoutError:
                    yield b": heart-beat\n\n"
            images = drawing.result()
            response, _ = await self._native.finish(prepared, images)
            evidence = self._evidence(response, [*body.warnings(), *_missing(wanted, shown)])
            for text in response.images or ():
                told = {"b64_json": text, "usage": NO_TOKENS, "cache_dit": json.loads(evidence.model_dump_json())}
                yield _event(f"{kind}.completed", told | _about(text, body.format))
        except ServingError as error:
            yield _event("error", error.body(generation.id))
        except Exception:
            logger.exception("%s failed in its stream", generation.id)
            yield _event("error", InternalError().body(generation.id))
        finally:
            left.set()  # the client may have gone

    def _evidence(self, response: GenerateResponse, warnings: list[RequestWarning]) -> Evidence:
        evidence = Evidence.of(response)
        return evidence.model_copy(update={"warnings": [*warnings, *evidence.warnings]})


def _event(kind: str, data: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()


def _about(image: str, extension: str) -> dict[str, Any]:
    """What each of OpenAI's events says of its picture."""
    return {
        "created_at": int(time.time()),
        "background": "opaque",
        "output_format": extension,
        "quality": "auto",
        "size": _size_of(base64.b64decode(image)),
    }


def _is_due(preview: JobPreview, shown: list[JobPreview], wanted: int) -> bool:
    """Whether a preview is to be shown, of so many that are spread over all steps."""
    if len(shown) >= wanted or preview in shown:
        return False
    return preview.step * (wanted + 1) >= (len(shown) + 1) * preview.steps or wanted > preview.steps


def _missing(wanted: int, shown: list[JobPreview]) -> list[RequestWarning]:
    if len(shown) >= wanted:
        return []
    message = f"{len(shown)} of {wanted} previews were made; the server's previews.every says how often there is one"
    return [RequestWarning(param="partial_images", code="adjusted", message=message)]


def _size_of(content: bytes) -> str:
    with Image.open(io.BytesIO(content)) as picture:
        return "{}x{}".format(*picture.size)
