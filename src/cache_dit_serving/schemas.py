"""What crosses the wire: requests, answers, and the values inside them. Nothing here knows torch or HTTP."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cache_dit_serving.caching.settings import CacheOptions, ReasonCode
from cache_dit_serving.caching.step_masks import MOST_STEPS
from cache_dit_serving.config import MeasuredSpeed, Speed

MAX_SEED = 2**53 - 1
"""Greatest seed: the largest integer that every JSON reader keeps exact."""


class NoFields(BaseModel):
    """The body of a route that takes nothing: empty, or `{}`."""

    model_config = ConfigDict(extra="forbid")


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
        None,
        min_length=1,
        max_length=MOST_STEPS,
        description="Noise levels of the steps, greatest first; their number is the steps'.",
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

    speed: Speed | None = Field(
        None,
        description="How much the cache may approximate: lossless (no cache) to fast; GET /capabilities has figures.",
    )
    cache: CacheOptions | None = Field(
        None, description="Cache settings of this request, laid over those of its speed or of the server."
    )
    deadline_s: float | None = Field(
        None,
        gt=0,
        description="Seconds from now; the least approximation that fits is chosen where speed and cache are left out.",
    )

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
    reason: str | None = Field(None, description="Why not, where it did not; or what is wrong with what it did.")
    reason_code: ReasonCode | None = Field(None, description="The same as one word.")
    speed: str = Field(description="The speed whose settings these are; custom where they are no named speed's.")
    steps: int = Field(description="Denoising steps, over all images.")
    cached_steps: int = Field(description="Steps in which blocks were reused instead of computed.")
    computed_steps: int = Field(description="The other steps.")
    executed_steps: int = Field(description="Steps by cache-dit's own count: equal to steps, or the pairing is wrong.")
    blocks: int = Field(
        0, description="Runs of transformer blocks, reused or not; 0 where there is no cache to count them."
    )
    reused_blocks: int = Field(
        0, description="Those of them that were reused: what the cache saved, whatever its type."
    )
    residual_diff: DiffQuantiles | None = None
    nan_diffs: int = Field(
        0, description="Residual differences that are not numbers: an alarm about the model's values."
    )
    redrawn: int = Field(
        0,
        description="Images drawn twice because guidance made other forward passes than planned; the second is right.",
    )
    settings: dict[str, Any] | None = Field(
        None, description="Those that had a say; as the `cache` object of a request they do the same again."
    )
    settings_hash: str | None = Field(None, description="Ten hexadecimal digits that name the settings.")


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
    blocks: int = Field(description="Runs of its blocks without a cache, over both passes.")
    reused_blocks: int = Field(description="Those of them that were reused.")


class ImageStats(BaseModel):
    seed: int
    block_lists: list[BlockListStats]


class DeadlineReport(BaseModel):
    """How a request's deadline was met."""

    deadline_s: float
    estimate_s: float = Field(
        description="What was promised at admission: the queue and the generation, with a margin."
    )
    queue_s: float = Field(description="The queue's part of it.")
    speed: str = Field(description="The speed that was chosen, or the request's own.")


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
    deadline: DeadlineReport | None = None
    # Not null when not asked for: BentoML 1.4's client cannot read a null where the schema has a list.
    stats: list[ImageStats] = Field([], description="One per image, where include_stats asked for it.")


class ComparedImage(BaseModel):
    """One side of a comparison."""

    image: str = Field(description="base64 text, a path or a URL, as output_format asked.")
    time_cost: float = Field(description="Seconds from the prompt to the picture, without the queue.")
    denoise: float = Field(description="Seconds of them in denoising steps.")
    cache: CacheReport


class CompareResponse(BaseModel):
    """One seed with the cache and without, and how far apart the pictures are."""

    seed: int
    cached: ComparedImage
    uncached: ComparedImage
    difference: str = Field(description="Picture of the absolute differences, the greatest drawn white.")
    identical: bool = Field(description="Whether every pixel is the same before rounding.")
    psnr_db: float | None = Field(description="Peak signal-to-noise ratio, dB; null for identical pictures (infinite).")
    ssim: float = Field(
        description="Structural similarity (Wang et al. 2004), mean over pixels and channels; 1: equal."
    )
    max_difference: float = Field(description="Greatest difference of a channel of a pixel, of values from 0 to 1.")
    mean_difference: float
    speedup: float = Field(description="Uncached seconds / cached seconds.")
    request_id: str
    stats: list[BlockListStats] = Field([], description="Of the cached picture, where include_stats asked for it.")


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
    cache: dict[str, Any] | None = Field(
        description="Default settings, the blocks of each list, whether it runs and why not; null: not asked for."
    )
    parallelism: None = None
    quantization: None = None
    loras: list[str] = []
    memory: dict[str, int] = Field(description="Bytes: resident memory of the process, the device's, the cache's.")


class SpeedCapability(BaseModel):
    """One named speed on this server."""

    name: Speed
    allowed: bool = Field(description="Whether a request may ask for it: false above the operator's ceiling.")
    default: bool = Field(description="Whether a request that asks for nothing gets it.")
    settings: dict[str, Any] | None = Field(description="Its cache settings; null: no cache.")
    settings_hash: str | None
    measured: MeasuredSpeed | None = Field(
        description="Figures of exactly these settings on this model; null: not measured (derived settings, for one)."
    )
    seconds: float | None = Field(
        description="What a request with the defaults takes here, by what has run since the start; null: has not run."
    )


class CacheCapability(BaseModel):
    """What the `cache` object of a request may hold on this model."""

    supported: bool
    reason: str | None = Field(description="Why not.")
    types: dict[str, bool] = Field(description="Which cache types run.")
    block_lists: dict[str, int] = Field(description="Blocks of each list that the cache spans: Fn + Bn must fit each.")
    default: dict[str, Any] | None = Field(description="Settings of a request that names none; null: no cache.")
    fields: dict[str, dict[str, Any]] = Field(description="JSON schema of each field, bounds as on this model.")


class StepRate(BaseModel):
    """How long steps of one size take here: medians over the newest pictures."""

    pixels: int = Field(description="width x height")
    forward_passes: int = Field(description="In a step: 2 where guidance takes one of its own.")
    computed_step_s: float
    fixed_s: float = Field(description="Encoding the prompt, decoding and encoding the picture.")
    observations: int


class Capabilities(BaseModel):
    """What this server accepts, for programs."""

    model: str
    pipeline_class: str
    tasks: list[str]
    fields: dict[str, dict[str, Any]] = Field(
        description="JSON schema of each accepted field of a request, bounds as here."
    )
    size_multiple: int = Field(description="Pixels; width and height must be multiples.")
    limits: dict[str, Any]
    speeds: list[SpeedCapability] = Field(description="Least approximation first.")
    measured_on: str | None = Field(description="Hardware, prompts, versions and date of the speeds' figures.")
    cache: CacheCapability
    rates: list[StepRate]


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
    cache: CacheReport | None = Field(None, description="The evidence, where cache.strict found nothing reused.")
    deadline: DeadlineReport | None = Field(None, description="The best that can be promised, where no speed fits.")
