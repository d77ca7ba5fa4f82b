"""What crosses the wire: requests, answers, and the values inside them. Nothing here knows torch or HTTP."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_SEED = 2**53 - 1
"""Greatest seed: the largest integer that every JSON reader keeps exact."""


class GenerateRequest(BaseModel):
    """One generation. A field left out, or null, takes the model's own default; an unknown field is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str = Field(description="What to draw.", min_length=1, examples=["a red apple on a blue background"])
    negative_prompt: str | None = Field(None, description="What to keep out; needs guidance with a second pass.")
    width: int | None = Field(None, ge=1, description="Pixels; GET /get_model_info lists the sizes the model takes.")
    height: int | None = Field(None, ge=1, description="Pixels.")
    num_inference_steps: int | None = Field(None, ge=1, description="Denoising steps.")
    guidance_scale: float | None = Field(None, ge=0, le=100, description="The pipeline's own guidance scale.")
    true_cfg_scale: float | None = Field(
        None, ge=0, le=100, description="Classifier-free guidance with a second pass, where the pipeline has it."
    )
    sigmas: list[Annotated[float, Field(ge=0)]] | None = Field(
        None, min_length=1, description="Noise levels of the steps, greatest first; their number is the steps'."
    )
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Image i takes seed + i; left out: drawn at random.")
    num_images: int | None = Field(None, ge=1, description="Images to draw, one after the other (default 1).")
    include_stats: bool | None = Field(None, description="Add each step's residual difference to the answer.")
    output_format: Literal["base64", "path", "url"] | None = Field(None, description="base64 (default), path or url.")
    output_dir: str | None = Field(
        None, max_length=200, description="Folder for path and url, relative to the server's output folder."
    )
    image_format: Literal["png", "jpeg", "webp"] | None = Field(None, description="png (default), jpeg or webp.")
    image_quality: int | None = Field(None, ge=1, le=100, description="Of jpeg and webp (default 90).")

    @property
    def wants_files(self) -> bool:
        """Whether the answer holds paths or URLs instead of the pictures."""
        return self.output_format in ("path", "url")

    @property
    def encoding(self) -> Literal["png", "jpeg", "webp"]:
        """`image_format`, or what stands for it when it is left out."""
        return self.image_format or "png"


class Timings(BaseModel):
    """Seconds by stage, summed over the images of the request."""

    queue: float = Field(description="From admission to the pipeline's start.")
    encode_prompt: float = Field(description="From the pipeline's start to the transformer's first forward pass.")
    denoise: float = Field(description="From there to the end of the last step.")
    decode: float = Field(description="From there to the picture: the VAE.")
    encode_output: float = Field(description="Into PNG, JPEG or WebP, beside the pipeline.")


class DiffQuantiles(BaseModel):
    """Quantiles of the relative L1 residual differences that the cache decided on."""

    min: float
    p25: float
    median: float
    p75: float
    max: float


class CacheReport(BaseModel):
    """What the cache did to this request."""

    enabled: bool
    engaged: bool = Field(description="Whether any step reused activations.")
    reason: str | None = Field(None, description="Why not, where it did not.")
    steps: int = Field(description="Denoising steps, over all images.")
    cached_steps: int = Field(description="Steps in which blocks were reused instead of computed.")
    computed_steps: int = Field(description="The other steps.")
    executed_steps: int = Field(description="Steps by cache-dit's own count: equal to steps, or the pairing is wrong.")
    residual_diff: DiffQuantiles | None = None
    settings: dict[str, Any] | None = Field(None, description="Those in force, where they differ from the defaults.")


class BlockListStats(BaseModel):
    """The cache's record of one block list over one image.

    `diffs` maps a step to its residual difference (DBCache) or to one for each block (DBPrune).
    """

    transformer: str
    block_list: str
    cached_steps: list[int]
    diffs: dict[int, float | list[float]]
    cfg_cached_steps: list[int] = Field(description="Likewise for the second pass of guidance.")
    cfg_diffs: dict[int, float | list[float]]


class ImageStats(BaseModel):
    seed: int
    block_lists: list[BlockListStats]


class GenerateResponse(BaseModel):
    """The pictures and how they came about."""

    images: list[str] = Field(description="base64 text, paths or URLs, as output_format asked.")
    seeds: list[int] = Field(description="One per image; each draws the same picture when asked for alone.")
    time_cost: float = Field(description="Seconds between the two times below.")
    inference_start_time: str = Field(description="ISO 8601, UTC, ms.")
    inference_end_time: str = Field(description="ISO 8601, UTC, ms.")
    timings: Timings
    request_id: str
    cache: CacheReport
    # Not null when not asked for: BentoML 1.4's client cannot read a null where the schema has a list.
    stats: list[ImageStats] = Field([], description="One per image, where include_stats asked for it.")


class QueueReport(BaseModel):
    waiting: int
    running: bool
    step: int = Field(description="Of the running generation, over all its images.")
    steps: int


class HealthResponse(BaseModel):
    status: Literal["loading", "ready", "failed", "draining"]
    reason: str | None = Field(None, description="What it is doing while loading; what went wrong where it failed.")
    queue: QueueReport


class ModelInfo(BaseModel):
    """The loaded model and what a request to it may hold."""

    model: str
    pipeline_class: str
    tasks: list[str]
    dtype: str
    device: str
    versions: dict[str, str]
    accepted_fields: list[str] = Field(description="Fields of GenerateRequest that this model honours.")
    defaults: dict[str, Any]
    limits: dict[str, Any]
    attention_backend: str
    cache: dict[str, Any] | None = Field(description="The cache's settings and the blocks of each list; null: off.")
    parallelism: None = None
    quantization: None = None
    loras: list[str] = []
    memory: dict[str, int] = Field(description="Bytes: resident memory of the process, the device's, the cache's.")


class FlushResponse(BaseModel):
    success: bool
    message: str
    freed_bytes: int = Field(description="Bytes of cached activations that were freed.")


class ErrorDetail(BaseModel):
    message: str
    type: str
    code: str
    param: str | None = None


class ErrorResponse(BaseModel):
    """The one shape of every error."""

    error: ErrorDetail
    request_id: str
