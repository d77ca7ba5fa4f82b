"""What a caller may ask for."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from cache_dit_serving.caching.settings import CacheOptions
from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.caching.step_masks import MOST_STEPS
from cache_dit_serving.media.fit import Fit
from cache_dit_serving.media.formats import DEFAULT_FORMAT, AudioFormat, ImageFormat, VideoFormat
from cache_dit_serving.media.frame_times import MOST_FPS

MAX_SEED = 2**53 - 1
"""Greatest seed: the largest integer that every JSON reader keeps exact."""

MOST_LABEL_CHARACTERS = 200

MOST_PRIORITY = 100

WebhookEvent = Literal["running", "succeeded", "failed", "cancelled", "expired"]

LEAST_AUDIO_S = 0.1
"""Shortest sound, seconds."""


def _class_label(value: Any) -> int | str | None:
    # By hand: a union's findings would name its members beside the field.
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    if isinstance(value, str) and 0 < len(value) <= MOST_LABEL_CHARACTERS:
        return value
    raise ValueError(f"should be a class's number, 0 or more, or its name, up to {MOST_LABEL_CHARACTERS} characters")


ClassLabel = Annotated[
    int | str | None,
    PlainValidator(_class_label),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "minLength": 1, "maxLength": MOST_LABEL_CHARACTERS},
                {"type": "null"},
            ]
        }
    ),
]
"""A class by its number, or by its name."""


class NoFields(BaseModel):
    """The body of a route that takes nothing: empty, or `{}`."""

    model_config = ConfigDict(extra="forbid")


class LoraRequest(BaseModel):
    """A LoRA by its name; `GET /capabilities` lists them."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=64)
    scale: float | None = Field(None, description="How strongly; left out: as configured, or 1.")


class Drawing(BaseModel):
    """What to draw and how, in every dialect that this server speaks; an unknown field is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str | None = Field(
        None,
        description="What to draw; needed but by models that draw a class.",
        min_length=1,
        examples=["a red apple on a blue background"],
    )
    negative_prompt: str | None = Field(None, description="What to keep out; needs guidance with a second pass.")
    num_inference_steps: int | None = Field(None, ge=1, description="Denoising steps.")
    guidance_scale: float | None = Field(None, ge=0, le=100, description="The pipeline's own guidance scale.")
    true_cfg_scale: float | None = Field(
        None, ge=0, le=100, description="Classifier-free guidance with a second pass, where the pipeline has it."
    )
    loras: list[LoraRequest] | None = Field(
        None,
        max_length=32,
        description="LoRAs to draw with, and no others; left out: those of the server's configuration. What they add "
        "is added in this order.",
    )
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Image i takes seed + i; left out: drawn at random.")
    strength: float | None = Field(
        None,
        gt=0,
        le=1,
        description="How far to leave the picture: the share of the steps that run. 1 keeps little of it.",
    )
    fit: Fit | None = Field(
        None,
        description="A picture or a video of another shape than what is drawn: crop (default) cuts off what juts out, "
        "pad adds black bars, which a mask has drawn anew, stretch distorts it. warnings tell.",
    )
    speed: Speed | None = Field(
        None,
        description="How much the cache may approximate: lossless (no cache) to fast; GET /capabilities has figures.",
    )
    cache: CacheOptions | None = Field(
        None, description="Cache settings of this request, laid over those of its speed or of the server."
    )
    priority: int | None = Field(
        None, ge=0, le=MOST_PRIORITY, description="Greater ones run first (default 0); limits.max_priority bounds it."
    )
    deadline_s: float | None = Field(
        None,
        gt=0,
        description="Seconds from now; the least approximation that fits is chosen where speed and cache are left out.",
    )


class GenerateRequest(Drawing):
    """One generation. A field left out, or null, takes the model's own default; an unknown field is refused."""

    class_label: ClassLabel = Field(
        None, description="Class to draw, by its number or its name, on a model that draws classes."
    )
    width: int | None = Field(None, ge=1, description="Pixels; GET /get_model_info lists the sizes the model takes.")
    height: int | None = Field(None, ge=1, description="Pixels.")
    sigmas: list[Annotated[float, Field(ge=0)]] | None = Field(
        None,
        min_length=1,
        max_length=MOST_STEPS,
        description="Noise levels of the steps, greatest first; their number is the steps'.",
    )
    max_sequence_length: int | None = Field(
        None, ge=1, description="Tokens of the prompt that the text encoder reads; what is beyond them is cut off."
    )
    extra_args: dict[str, Any] | None = Field(
        None,
        max_length=64,
        description="Further arguments of the pipeline's call by their own names; GET /capabilities lists them.",
    )
    num_images: int | None = Field(None, ge=1, description="Images to draw, one after the other (default 1).")
    image_urls: list[str] | None = Field(
        None,
        max_length=16,
        description="Pictures to edit or to begin from: data URIs, or base64 of PNG, JPEG or WebP.",
    )
    mask_url: str | None = Field(
        None, description="Mask of the same size as the picture: white is drawn anew, black is kept."
    )
    control_url: str | None = Field(
        None, description="Picture that guides what is drawn where: edges, depth, poses, as the model was trained for."
    )
    last_image_url: str | None = Field(None, description="Picture that a video ends with; it begins with image_urls.")
    video_url: str | None = Field(None, description="Video to begin from, or to be guided by: MP4 or WebM.")
    num_frames: int | None = Field(
        None, ge=1, description="Frames of a video; GET /capabilities lists the numbers that the model makes."
    )
    fps: int | None = Field(None, ge=1, le=MOST_FPS, description="Frames a second of a video; nothing to an image.")
    audio_length_s: float | None = Field(
        None, ge=LEAST_AUDIO_S, description="Seconds of a sound, on a model that makes sound."
    )
    include_stats: bool | None = Field(None, description="Add each step's residual difference to the answer.")
    profile: bool | None = Field(
        None, description="Write a trace of it on the server, by torch's profiler; where the operator lets requests."
    )
    output_format: Literal["base64", "path", "url"] | None = Field(None, description="base64 (default), path or url.")
    output_dir: str | None = Field(
        None, max_length=200, description="Folder for path and url, relative to the server's output folder."
    )
    image_format: ImageFormat | None = Field(None, description="png (default), jpeg or webp.")
    video_format: VideoFormat | None = Field(None, description="mp4 (H.264, default), webp or gif.")
    audio_format: AudioFormat | None = Field(None, description="wav (16 bits, default) or flac.")
    image_quality: int | None = Field(None, ge=1, le=100, description="Of jpeg and webp (default 90).")

    @property
    def wants_files(self) -> bool:
        """Whether the answer holds paths or URLs instead of the pictures."""
        return self.output_format in ("path", "url")

    @property
    def encoding(self) -> ImageFormat:
        """`image_format`, or what stands for it when it is left out."""
        return self.image_format or DEFAULT_FORMAT


class JobRequest(GenerateRequest):
    """One generation, and who is told what becomes of it."""

    webhook_url: str | None = Field(
        None,
        min_length=1,
        max_length=2048,
        description="Address that is told what becomes of the job; see webhooks.hosts.",
    )
    webhook_events: list[WebhookEvent] | None = Field(
        None, min_length=1, description="States that are told; left out: those in which a job ends."
    )

    @model_validator(mode="after")
    def _events_have_an_address(self) -> Self:
        if self.webhook_events and self.webhook_url is None:
            raise ValueError("webhook_events needs webhook_url: the address that is told")
        return self
