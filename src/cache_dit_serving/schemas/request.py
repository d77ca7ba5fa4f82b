"""Schemas of requests."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from cache_dit_serving.caching.settings import CacheOptions
from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.caching.step_masks import MOST_STEPS
from cache_dit_serving.config.residency import SleepLevel
from cache_dit_serving.media.audio import AudioFormat
from cache_dit_serving.media.fit import Fit
from cache_dit_serving.media.frame_times import MOST_FPS
from cache_dit_serving.media.images import ImageFormat
from cache_dit_serving.media.kinds import KINDS
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.media.video import VideoFormat

MAX_SEED = 2**53 - 1
"""Maximum seed: the largest integer that every JSON reader keeps exact."""

MOST_LABEL_CHARACTERS = 200

MOST_PRIORITY = 100

WebhookEvent = Literal["running", "succeeded", "failed", "cancelled", "expired"]

LEAST_SHIFT = 0.05
MOST_SHIFT = 20

LEAST_AUDIO_S = 0.1
"""Minimum length of a sound, seconds."""


def _class_label(value: Any) -> int | str | None:
    # Validated by hand: for a union, pydantic's errors would name its members after the field.
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
"""A class, given by its number or its name."""


MODEL = Field(
    None,
    min_length=1,
    max_length=200,
    description="Name of a model that GET /v1/models lists; default: the server's default one.",
)
"""Field that chooses among the models of a server."""


class NoFields(BaseModel):
    """Body of a route without fields: empty, or `{}`."""

    model_config = ConfigDict(extra="forbid")


class SleepRequest(BaseModel):
    """Sleep of the model."""

    model_config = ConfigDict(extra="forbid", strict=True)

    level: SleepLevel | None = Field(
        None,
        description="Place of the weights meanwhile. host: host memory, from where they are copied back; disk: none, "
        "so the model is loaded again. Default: server.sleep_level.",
    )
    model: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Name of the model that goes to sleep; default: all that are awake.",
    )


class WakeRequest(BaseModel):
    """Wake of a model."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = MODEL


class ReloadRequest(BaseModel):
    """Weights that are to take the place of the model's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    folder: str = Field(
        max_length=500,
        pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$",
        description="Folder below model.reload_folder, with a folder of .safetensors files for each component that "
        "has new weights.",
    )
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="Digest that the weights must have; default: any."
    )


class JobChange(BaseModel):
    """Change of a job that waits."""

    model_config = ConfigDict(extra="forbid", strict=True)

    priority: int = Field(ge=0, le=MOST_PRIORITY, description="Higher runs first; limits.max_priority is the maximum.")


class LoraRequest(BaseModel):
    """A LoRA by name; `GET /capabilities` lists the names."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=64, description="Name; GET /capabilities lists them.")
    scale: float | None = Field(None, description="Strength; default: the configured scale, or 1.")


class CommonFields(BaseModel):
    """Fields that requests of every API of this server share. An unknown field is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str | None = Field(
        None,
        description="Description of the output. Required, except on a class-conditional model (DiT), which takes none.",
        min_length=1,
        examples=["a red apple on a blue background"],
    )
    negative_prompt: str | None = Field(
        None,
        description="Description of things to avoid. Needs guidance with a second forward pass: `true_cfg_scale` on "
        "pipelines that have it, elsewhere `guidance_scale` above 1.",
    )
    num_inference_steps: int | None = Field(None, ge=1, description="Denoising steps.")
    scheduler: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="Scheduler (sampler) by name; GET /capabilities lists those that the operator offers. Left out: "
        "the model's own.",
    )
    shift: float | None = Field(
        None,
        ge=LEAST_SHIFT,
        le=MOST_SHIFT,
        description="Shift of a flow-matching scheduler's noise levels; a greater one spends more steps at high noise. "
        "It replaces a shift that follows the size. Left out: the scheduler's own.",
    )
    guidance_scale: float | None = Field(
        None, ge=0, le=100, description="The pipeline's own guidance scale; refused if the weights have no guidance."
    )
    true_cfg_scale: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Classifier-free guidance with a second forward pass, on pipelines that have it; needs "
        "`negative_prompt`.",
    )
    loras: list[LoraRequest] | None = Field(
        None,
        max_length=32,
        description="LoRAs to draw with, applied in this order. Left out: those of the server's configuration; `[]`: "
        "none.",
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="Seed of the first image; image i has seed + i. Left out: random. The answer returns the seeds.",
    )
    strength: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the denoising steps that run on the input picture. 1 keeps little of it.",
    )
    fit: Fit | None = Field(
        None,
        description="Treatment of a picture or video whose aspect ratio differs from the output's: crop (default) "
        "cuts the excess off, pad adds black bars (redrawn if there is a mask), stretch distorts it. A warning "
        "reports it.",
    )
    speed: Speed | None = Field(
        None,
        description="Named amount of approximation: lossless (no cache) to fast; GET /capabilities has figures.",
    )
    cache: CacheOptions | None = Field(
        None, description="Cache settings of this request; they override those of its speed or of the server."
    )
    priority: int | None = Field(
        None, ge=0, le=MOST_PRIORITY, description="Higher runs first (default 0); limits.max_priority is the maximum."
    )
    deadline_s: float | None = Field(
        None,
        gt=0,
        description="Seconds from now until the answer is due. Without speed and cache, the most exact speed that "
        "fits is chosen.",
    )


class GenerateRequest(CommonFields):
    """One generation. A field that is absent or null has the model's default; an unknown field is refused."""

    model: str | None = MODEL
    class_label: ClassLabel = Field(
        None,
        description="Class to draw, by number or name; required on a class-conditional model. GET /capabilities "
        "lists the classes.",
    )
    width: int | None = Field(
        None, ge=1, description="Width, pixels; GET /get_model_info lists the sizes the model takes."
    )
    height: int | None = Field(None, ge=1, description="Height, pixels.")
    sigmas: list[Annotated[float, Field(ge=0)]] | None = Field(
        None,
        min_length=1,
        max_length=MOST_STEPS,
        description="Noise levels of the steps, greatest first, one per step.",
    )
    max_sequence_length: int | None = Field(
        None,
        ge=1,
        description="Tokens of the prompt that the text encoder reads. A longer prompt is truncated, and `warnings` "
        "holds the words cut off.",
    )
    extra_args: dict[str, Any] | None = Field(
        None,
        max_length=64,
        description='Further arguments of the pipeline\'s call, by name, such as {"clip_skip": 1}; GET /capabilities '
        "lists them with their types.",
    )
    num_images: int | None = Field(
        None,
        ge=1,
        description="Number of images (default 1). They are drawn one after the other; each is bit-identical to a "
        "request for its seed alone.",
    )
    image_urls: list[str] | None = Field(
        None,
        max_length=16,
        description="Pictures to edit or to start from: data URIs or base64; addresses and paths where the operator "
        "allows them. `[]`: none.",
    )
    mask_url: str | None = Field(
        None, description="Mask of the same size as the picture: white is redrawn, black is kept."
    )
    control_url: str | None = Field(
        None, description="Picture that guides the layout: edges, depth or poses, whichever the model was trained for."
    )
    last_image_url: str | None = Field(None, description="Last picture of a video; image_urls holds the first.")
    video_url: str | None = Field(None, description="Video to start from or to be guided by: MP4 or WebM.")
    num_frames: int | None = Field(
        None,
        ge=1,
        description="Number of frames of a video. GET /capabilities lists the numbers that the model makes (Wan: 4k "
        "+ 1). Image models accept 1.",
    )
    fps: int | None = Field(
        None, ge=1, le=MOST_FPS, description="Frame rate of a video, frames per second; ignored for an image."
    )
    audio_length_s: float | None = Field(
        None,
        ge=LEAST_AUDIO_S,
        description="Length of the sound, seconds, on a model that makes sound; left out: the model's own length.",
    )
    include_stats: bool | None = Field(
        None,
        description="Add `stats.cache_stats` to the answer: each step's residual difference, by image, transformer "
        "and block list.",
    )
    profile: bool | None = Field(
        None, description="Write a torch profiler trace on the server, if the operator allows requests to."
    )
    output_format: Literal["base64", "path", "url"] | None = Field(
        None, description="Form of the files in the answer: base64 (default), path or url."
    )
    output_dir: str | None = Field(
        None, max_length=200, description="Folder of the files, below the server's output folder; for path and url."
    )
    image_format: ImageFormat | None = Field(None, description="Image format: png (default), jpeg or webp.")
    video_format: VideoFormat | None = Field(
        None, description="Video format: mp4 (H.264, default), webp or gif. webp and gif are animations without sound."
    )
    audio_format: AudioFormat | None = Field(None, description="Audio format: wav (16 bits, default) or flac.")
    image_quality: int | None = Field(
        None, ge=1, le=100, description="Quality of jpeg and webp (default 90); refused for png."
    )

    @property
    def wants_files(self) -> bool:
        """True if the answer holds paths or URLs instead of base64."""
        return self.output_format in ("path", "url")

    @property
    def encoding(self) -> str:
        """Image format of the request, or the default."""
        return self.image_format or KINDS[MediaKind.IMAGE].default_format


class JobRequest(GenerateRequest):
    """One generation as a job, and the webhook that reports its states."""

    webhook_url: str | None = Field(
        None,
        min_length=1,
        max_length=2048,
        description="URL that receives the job's states; its host must be in webhooks.hosts.",
    )
    webhook_events: list[WebhookEvent] | None = Field(
        None, min_length=1, description="States to report; default: every state in which a job ends."
    )

    @model_validator(mode="after")
    def _events_have_an_address(self) -> Self:
        if self.webhook_events and self.webhook_url is None:
            raise ValueError("webhook_events needs webhook_url: the address that is told")
        return self
