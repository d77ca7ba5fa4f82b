"""OpenAI's requests and answers, as its SDK 3.57 sends and reads them.

https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, Field

from cache_dit_serving.caching.report import CacheReport
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.frame_times import MOST_FPS
from cache_dit_serving.schemas.answers import Answer, DeadlineReport, GenerateResponse, RequestWarning, Timings
from cache_dit_serving.schemas.request import Drawing, GenerateRequest

SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
SECONDS = re.compile(r"\d{1,4}(\.\d{1,3})?")
WITHOUT_EFFECT = ("style", "moderation", "input_fidelity")
"""Fields that OpenAI's own models know; ones that say `auto` ask for nothing."""
ANSWERED_BY_URL = ("dall-e-2", "dall-e-3")
"""Models that OpenAI answers for with URLs where `response_format` is left out; their clients read nothing else."""

Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]
AnsweredQuality = Literal["low", "medium", "high", "max"]


class ImageGeneration(Drawing):
    """Body of /v1/images/generations."""

    model: str | None = Field(
        None, max_length=200, description="One that GET /v1/models lists; left out: the one there is."
    )
    n: int | None = Field(None, ge=1, description="Images to draw (default 1).")
    size: str | None = Field(None, max_length=20, description="WIDTHxHEIGHT in pixels, or auto: the model's own.")
    response_format: Literal["b64_json", "url"] | None = Field(
        None, description="b64_json or url; left out: b64_json, or url where model is dall-e-2 or dall-e-3."
    )
    output_format: Literal["png", "jpeg", "webp"] | None = Field(
        None, description="png (default), jpeg (or jpg) or webp."
    )
    output_compression: int | None = Field(
        None, ge=0, le=100, description="Quality of jpeg and webp; without effect on png, and reported."
    )
    background: Literal["auto", "opaque", "transparent"] | None = Field(
        None, description="Pictures are opaque: transparent is refused."
    )
    quality: Quality | None = Field(
        None,
        description="A speed: low is fast, medium balanced, high and hd high, xhigh and max lossless; auto and "
        "standard are the server's default. speed and cache go before it.",
    )
    style: Literal["vivid", "natural"] | None = Field(None, description="Without effect, and reported.")
    moderation: Literal["auto", "low"] | None = Field(None, description="Without effect, and reported.")
    user: str | None = Field(None, max_length=512, description="Without effect.")
    safety_identifier: str | None = Field(None, max_length=512, description="Without effect.")
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    partial_images: int | None = Field(
        None, ge=0, le=3, description="Previews in a stream, spread over its steps (default 0)."
    )

    @property
    def format(self) -> Literal["png", "jpeg", "webp"]:
        return self.output_format or "png"

    @property
    def wants_urls(self) -> bool:
        """Whether the answer holds URLs in place of base64."""
        if self.response_format is None:
            return self.model in ANSWERED_BY_URL and not self.stream
        return self.response_format == "url"

    @property
    def wanted_previews(self) -> int:
        """Previews in the stream; 0 without one."""
        return (self.partial_images or 0) if self.stream else 0

    def asked(self) -> GenerateRequest:
        """The same in this server's own words.

        Raises:
            InvalidRequest: it asks for what no server of this kind does.
        """
        if self.background == "transparent":
            raise InvalidRequest("background: pictures here are opaque; send opaque or auto", param="background")
        if self.stream and self.response_format == "url":
            raise InvalidRequest("response_format: a stream holds base64; leave it out", param="response_format")
        given: dict[str, Any] = {
            name: getattr(self, name) for name in Drawing.model_fields if name in self.model_fields_set
        }
        given |= {"num_images": self.n, "output_format": "url" if self.wants_urls else "base64"}
        given |= {"image_format": self.format} | self._size() | self._brought()
        if self.output_compression is not None and self.format != "png":
            given["image_quality"] = max(1, self.output_compression)
        return GenerateRequest.model_validate(given)

    def warnings(self) -> list[RequestWarning]:
        """What has no effect."""
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
        """Pictures that came with it."""
        return {}


def _no_effect(param: str, why: str) -> RequestWarning:
    return RequestWarning(param=param, code="no_effect", message=f"{param} has no effect {why}")


class ImageEdit(ImageGeneration):
    """Body of /v1/images/edits, whose `image` and `mask` stand in the fields of `/generate` here."""

    image_urls: list[str] | None = Field(
        None, max_length=16, description="The pictures: `image` as files of a form, or as `image` or `images` of JSON."
    )
    mask_url: str | None = Field(None, description="What is drawn anew: `mask`, white where it is.")
    input_fidelity: Literal["high", "low"] | None = Field(
        None, description="Without effect, and reported: see strength."
    )

    def _brought(self) -> dict[str, Any]:
        if not self.image_urls:
            raise InvalidRequest("image is missing; send the picture to edit", param="image")
        return {"image_urls": self.image_urls, "mask_url": self.mask_url}


def size_of(size: str | None) -> dict[str, int]:
    """Width and height of a size as OpenAI writes it; none where the model's own is asked for.

    Raises:
        InvalidRequest: it is no size.
    """
    if size in (None, "auto"):
        return {}
    if (found := SIZE.fullmatch(size or "")) is None:
        raise InvalidRequest("size is not WIDTHxHEIGHT, such as 1024x1024, or auto", param="size")
    return {"width": int(found[1]), "height": int(found[2])}


class Evidence(Answer):
    """What this server tells beside what OpenAI's does."""

    request_id: str
    seeds: list[int]
    timings: Timings
    cache: CacheReport
    deadline: DeadlineReport | None = None
    warnings: list[RequestWarning] = Field([], description="What had no effect, or another one than asked.")

    @classmethod
    def of(cls, response: GenerateResponse) -> Evidence:
        return cls(
            request_id=response.request_id,
            seeds=response.seeds,
            timings=response.timings,
            cache=response.cache,
            deadline=response.deadline,
            warnings=response.warnings,
        )

    @property
    def headers(self) -> dict[str, str]:
        """The shortest of it."""
        cache = self.cache
        return {
            "X-Cache-Engaged": str(cache.engaged).lower(),
            "X-Cache-Speed": cache.speed,
            "X-Cache-Cached-Steps": str(cache.cached_steps),
            "X-Cache-Steps": str(cache.cached_steps + cache.computed_steps),
        }


class OpenAiImage(Answer):
    b64_json: str | None = None
    url: str | None = None


class ImagesResponse(Answer):
    """The pictures."""

    created: int = Field(description="Seconds since the epoch.")
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "jpeg", "webp"]
    quality: AnsweredQuality | None = Field(None, description="The speed that ran; left out where it has no name.")
    size: str
    data: list[OpenAiImage]
    cache_dit: Evidence = Field(description="What the cache did, seeds and times; not OpenAI's.")


class OpenAiModel(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "cache-dit-serving"


class OpenAiModels(BaseModel):
    object: Literal["list"] = "list"
    data: list[OpenAiModel]


class VideoCreation(Drawing):
    """Body of /v1/videos."""

    model: str | None = Field(
        None, max_length=200, description="One that GET /v1/models lists; left out: the one there is."
    )
    seconds: str | int | None = Field(
        None, description="Length of the clip; the nearest that the model makes is drawn."
    )
    size: str | None = Field(None, max_length=20, description="WIDTHxHEIGHT in pixels; left out: the model's own.")
    image_urls: list[str] | None = Field(
        None, max_length=1, description="Picture to begin with: `input_reference` as a file of a form, or in JSON."
    )
    num_frames: int | None = Field(None, ge=1, description="Frames of the clip, in place of seconds.")
    fps: int | None = Field(None, ge=1, le=MOST_FPS, description="Frames a second.")

    @property
    def length_s(self) -> float | None:
        """
        Raises:
            InvalidRequest: `seconds` is no length.
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
        """The same in this server's own words.

        Args:
            num_frames: what `seconds` stands for.

        Raises:
            InvalidRequest: `size` is none.
        """
        names = {*Drawing.model_fields, "image_urls", "num_frames", "fps"} & self.model_fields_set
        given: dict[str, Any] = {name: getattr(self, name) for name in names} | size_of(self.size)
        if num_frames is not None:
            given["num_frames"] = num_frames
        return GenerateRequest.model_validate(given)


class VideoError(BaseModel):
    code: str
    message: str


class OpenAiVideo(Answer):
    """A clip on its way."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(description="Percent of the denoising steps.")
    created_at: int = Field(description="Seconds since the epoch.")
    completed_at: int | None = None
    expires_at: int | None = Field(None, description="When the server forgets it.")
    seconds: str
    size: str
    prompt: str | None = None
    error: VideoError | None = None
    cache_dit: Evidence | None = Field(None, description="What the cache did, seeds and times; not OpenAI's.")


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
