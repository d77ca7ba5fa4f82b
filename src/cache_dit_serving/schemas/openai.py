"""Requests and answers of OpenAI's API, as its SDK 3.57 sends and reads them.

https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, Field

from cache_dit_serving.caching.report import CacheReport
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.frame_times import MOST_FPS
from cache_dit_serving.media.images import ImageFormat
from cache_dit_serving.schemas.answers import (
    Answer,
    DeadlineReport,
    FileText,
    GenerateResponse,
    RequestWarning,
    Timings,
)
from cache_dit_serving.schemas.request import CommonFields, GenerateRequest

SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
SECONDS = re.compile(r"\d{1,4}(\.\d{1,3})?")
WITHOUT_EFFECT = ("style", "moderation", "input_fidelity")
"""Fields of OpenAI's models that have no effect here. A warning reports any value but `auto`."""
ANSWERED_BY_URL = ("dall-e-2", "dall-e-3")
"""Models for which OpenAI's default `response_format` is `url`. Their clients read nothing else."""

Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]
AnsweredQuality = Literal["low", "medium", "high", "max"]


class ImageGeneration(CommonFields):
    """Body of /v1/images/generations."""

    model: str | None = Field(
        None, max_length=200, description="A model that GET /v1/models lists; default: the server's default one."
    )
    n: int | None = Field(None, ge=1, description="Number of images (default 1).")
    size: str | None = Field(None, max_length=20, description="WIDTHxHEIGHT in pixels, or auto: the model's default.")
    response_format: Literal["b64_json", "url"] | None = Field(
        None, description="b64_json or url; default: b64_json, or url if model is dall-e-2 or dall-e-3."
    )
    output_format: ImageFormat | None = Field(None, description="Image format: png (default), jpeg (or jpg) or webp.")
    output_compression: int | None = Field(
        None, ge=0, le=100, description="Quality of jpeg and webp; no effect on png, which a warning reports."
    )
    background: Literal["auto", "opaque", "transparent"] | None = Field(
        None, description="Pictures are opaque: transparent is refused."
    )
    quality: Quality | None = Field(
        None,
        description="Speed: low is fast, medium balanced, high and hd high, xhigh and max lossless; auto and "
        "standard are the server's default. speed and cache override it.",
    )
    style: Literal["vivid", "natural"] | None = Field(None, description="No effect; a warning reports it.")
    moderation: Literal["auto", "low"] | None = Field(None, description="No effect; a warning reports it.")
    user: str | None = Field(None, max_length=512, description="No effect.")
    safety_identifier: str | None = Field(None, max_length=512, description="No effect.")
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    partial_images: int | None = Field(
        None, ge=0, le=3, description="Previews in a stream, spread over its steps (default 0)."
    )

    @property
    def format(self) -> ImageFormat:
        return self.output_format or "png"

    @property
    def wants_urls(self) -> bool:
        """True if the answer holds URLs instead of base64."""
        if self.response_format is None:
            return self.model in ANSWERED_BY_URL and not self.stream
        return self.response_format == "url"

    @property
    def wanted_previews(self) -> int:
        """Number of previews in the stream; 0 without a stream."""
        return (self.partial_images or 0) if self.stream else 0

    def asked(self) -> GenerateRequest:
        """Translate the request to this server's native one.

        Raises:
            InvalidRequest: a transparent background, URLs in a stream, or an invalid size.
        """
        if self.background == "transparent":
            raise InvalidRequest("background: pictures here are opaque; send opaque or auto", param="background")
        if self.stream and self.response_format == "url":
            raise InvalidRequest("response_format: a stream holds base64; leave it out", param="response_format")
        given: dict[str, Any] = {
            name: getattr(self, name) for name in CommonFields.model_fields if name in self.model_fields_set
        }
        given |= {"model": self.model, "num_images": self.n, "output_format": "url" if self.wants_urls else "base64"}
        given |= {"image_format": self.format} | self._size() | self._brought()
        if self.output_compression is not None and self.format != "png":
            given["image_quality"] = max(1, self.output_compression)
        return GenerateRequest.model_validate(given)

    def warnings(self) -> list[RequestWarning]:
        """Return a warning for each field that has no effect."""
        warnings = [
            RequestWarning(param=name, code="unsupported_field", message=f"{name} has no effect here")
            for name in WITHOUT_EFFECT
            if getattr(self, name, None) not in (None, "auto")
        ]
        if self.output_compression is not None and self.format == "png":
            warnings.append(_no_effect("output_compression", "on png; output_format jpeg and webp have it"))
        if self.partial_images and not self.stream:
            warnings.append(_no_effect("partial_images", "without stream: true"))
        return warnings

    def _size(self) -> dict[str, int]:
        return size_of(self.size)

    def _brought(self) -> dict[str, Any]:
        """Return the native fields that hold the request's images."""
        return {}


def _no_effect(param: str, why: str) -> RequestWarning:
    return RequestWarning(param=param, code="no_effect", message=f"{param} has no effect {why}")


class ImageEdit(ImageGeneration):
    """Body of /v1/images/edits. Its `image` and `mask` are stored under the names of `/generate`."""

    image_urls: list[str] | None = Field(
        None, max_length=16, description="Pictures to edit: `image` as files of a form; `image` or `images` in JSON."
    )
    mask_url: str | None = Field(None, description="Mask, sent as `mask`: white is redrawn.")
    input_fidelity: Literal["high", "low"] | None = Field(
        None, description="No effect; a warning reports it. Send strength instead."
    )

    def _brought(self) -> dict[str, Any]:
        if not self.image_urls:
            raise InvalidRequest("image is missing; send the picture to edit", param="image")
        return {"image_urls": self.image_urls, "mask_url": self.mask_url}


def size_of(size: str | None) -> dict[str, int]:
    """Return the native fields `width` and `height` for an OpenAI size; empty for `auto` or None.

    Raises:
        InvalidRequest: the text is not WIDTHxHEIGHT.
    """
    if size in (None, "auto"):
        return {}
    if (found := SIZE.fullmatch(size or "")) is None:
        raise InvalidRequest("size is not WIDTHxHEIGHT, such as 1024x1024, or auto", param="size")
    return {"width": int(found[1]), "height": int(found[2])}


class Evidence(Answer):
    """Cache report, seeds and times, which OpenAI's answers lack."""

    request_id: str
    seeds: list[int]
    timings: Timings
    model: str | None = Field(None, description="Name of the model that drew; absent on a server of one.")
    cache: CacheReport
    scheduler: str | None = Field(None, description="Name of the scheduler that drew; absent if the model has none.")
    shift: float | None = Field(None, description="Shift of the request; absent if the scheduler drew with its own.")
    deadline: DeadlineReport | None = None
    weights_version: str | None = Field(
        None, description="SHA-256 of reloaded weights that drew the output; absent: those of the start."
    )
    warnings: list[RequestWarning] = Field([], description="Parts of the request that had no effect or were adjusted.")

    @classmethod
    def of(cls, response: GenerateResponse) -> Evidence:
        return cls(
            request_id=response.request_id,
            seeds=response.seeds,
            timings=response.timings,
            model=response.model,
            cache=response.cache,
            scheduler=response.scheduler,
            shift=response.shift,
            deadline=response.deadline,
            weights_version=response.weights_version,
            warnings=response.warnings,
        )


class OpenAiImage(Answer):
    b64_json: FileText | None = None
    url: str | None = None


class ImagesResponse(Answer):
    """Answer of the image routes."""

    created: int = Field(description="Seconds since the epoch.")
    background: Literal["opaque"] = "opaque"
    output_format: ImageFormat
    quality: AnsweredQuality | None = Field(
        None, description="Speed of the generation; absent for custom cache settings."
    )
    size: str
    data: list[OpenAiImage]
    cache_dit: Evidence = Field(description="Cache report, seeds and times; an extension of OpenAI's API.")


class OpenAiModel(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "cache-dit-serving"


class OpenAiModels(BaseModel):
    object: Literal["list"] = "list"
    data: list[OpenAiModel]


class VideoCreation(CommonFields):
    """Body of /v1/videos."""

    model: str | None = Field(
        None, max_length=200, description="A model that GET /v1/models lists; default: the server's default one."
    )
    seconds: str | int | None = Field(
        None, description="Length of the clip, seconds; the nearest length that the model makes is drawn."
    )
    size: str | None = Field(None, max_length=20, description="WIDTHxHEIGHT in pixels; default: the model's.")
    image_urls: list[str] | None = Field(
        None, max_length=1, description="First picture, sent as `input_reference`: a file of a form, or in JSON."
    )
    num_frames: int | None = Field(None, ge=1, description="Number of frames of the clip, instead of seconds.")
    fps: int | None = Field(None, ge=1, le=MOST_FPS, description="Frame rate, frames per second.")

    @property
    def length_s(self) -> float | None:
        """Requested length, seconds; None without one.

        Raises:
            InvalidRequest: `seconds` is not a positive number, or comes together with `num_frames`.
        """
        if self.seconds is None:
            return None
        text = str(self.seconds)
        if not SECONDS.fullmatch(text) or float(text) <= 0:
            raise InvalidRequest("seconds is no number of seconds, such as 4", param="seconds")
        if self.num_frames is not None:
            raise InvalidRequest("seconds and num_frames contradict each other; send one of them", param="seconds")
        return float(text)

    def asked(self, num_frames: int | None) -> GenerateRequest:
        """Translate the request to this server's native one.

        Args:
            num_frames: number of frames for `seconds`; None: the request's `num_frames` or the default.

        Raises:
            InvalidRequest: `size` is not WIDTHxHEIGHT.
        """
        names = {"model", *CommonFields.model_fields, "image_urls", "num_frames", "fps"} & self.model_fields_set
        given: dict[str, Any] = {name: getattr(self, name) for name in names} | size_of(self.size)
        if num_frames is not None:
            given["num_frames"] = num_frames
        return GenerateRequest.model_validate(given)


class VideoError(BaseModel):
    code: str
    message: str


class OpenAiVideo(Answer):
    """A video job."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(description="Denoising steps done, percent.")
    created_at: int = Field(description="Seconds since the epoch.")
    completed_at: int | None = None
    expires_at: int | None = Field(None, description="Time at which the server deletes it, seconds since the epoch.")
    seconds: str
    size: str
    prompt: str | None = None
    error: VideoError | None = None
    cache_dit: Evidence | None = Field(None, description="Cache report, seeds and times; an extension of OpenAI's API.")


class OpenAiVideos(Answer):
    object: Literal["list"] = "list"
    data: list[OpenAiVideo]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool


class DeletedVideo(BaseModel):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True
