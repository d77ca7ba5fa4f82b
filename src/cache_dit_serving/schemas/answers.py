"""Answers, and the values inside them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from cache_dit_serving.caching.report import BlockListStats, CacheReport
from cache_dit_serving.caching.speed_settings import MeasuredSpeed, Speed


class Timings(BaseModel):
    """Seconds by stage, summed over the images of the request."""

    queue: float = Field(description="From admission to the pipeline's start.")
    encode_prompt: float = Field(description="From the pipeline's start to the transformer's first forward pass.")
    denoise: float = Field(description="From there to the end of the last step.")
    decode: float = Field(description="From there to the picture: the VAE.")
    encode_output: float = Field(description="Into the file's format, beside the pipeline.")
    prompt_hits: int = Field(
        description="No seconds: prompts that were not encoded again, since their embeddings were kept from before."
    )


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


def timestamp(seconds: float) -> str:
    """ISO 8601 in UTC with milliseconds, from seconds since the epoch."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Answer(BaseModel):
    """An answer whose keys are left out where there is nothing to say.

    BentoML 1.4.39 publishes `list[X] | None` as a list, and its client fails on a null there; clients of the old server
    read a missing key likewise, and not each reads a null. A field that may be None needs None as its default, so that
    the published schema does not require it.
    """

    def model_dump_json(self, **options: Any) -> str:
        return super().model_dump_json(**{"exclude_none": True, **options})


class Stats(BaseModel):
    """Each step's record, where include_stats asks for it."""

    cache_stats: list[ImageStats] = Field(description="One per image; of a comparison the cached one's.")


class RequestWarning(BaseModel):
    """A part of a request that had no effect, or another one than asked."""

    param: str = Field(description="The field.")
    code: str = Field(
        description="unsupported_field: the loaded model cannot honour it. no_effect: the rest of the request leaves "
        "it without one. adjusted: another value was used. "
        "repeated_seed: the picture that is sent was drawn with this seed. "
        "truncated: a tokenizer cut the text off."
    )
    message: str


class GenerateResponse(Answer):
    """The pictures and how they came about."""

    images: list[str] | None = Field(None, description="base64 text, paths or URLs, as output_format asked.")
    video: str | None = Field(None, description="The same of a model that makes video, in place of images.")
    audio: str | None = Field(None, description="The same of a model that makes sound.")
    seeds: list[int] = Field(description="One per image; each draws the same picture when asked for alone.")
    time_cost: float = Field(description="Seconds between the two times below.")
    inference_start_time: str = Field(description="ISO 8601, UTC, ms.")
    inference_end_time: str = Field(description="ISO 8601, UTC, ms.")
    timings: Timings
    request_id: str
    cache: CacheReport
    deadline: DeadlineReport | None = None
    warnings: list[RequestWarning] = Field(
        [], description="Parts of the request that had no effect, or another one than asked."
    )
    stats: Stats | None = Field(None, description="Where include_stats asked for it.")
    peak_memory_bytes: int | None = Field(
        None,
        description="The most that was allocated on the device meanwhile; on a CPU, that the process had resident. "
        "Left out where the system does not tell.",
    )
    profiles: list[str] | None = Field(
        None, description="Files in the operator's folder that traces were written to; left out where there are none."
    )


class ComparedImage(BaseModel):
    """One side of a comparison."""

    image: str | None = Field(None, description="base64 text, a path or a URL, as output_format asked.")
    video: str | None = Field(None, description="The same of a model that makes video, in place of the image.")
    audio: str | None = Field(None, description="The same of a model that makes sound.")
    time_cost: float = Field(description="Seconds from the prompt to the picture, without the queue.")
    denoise: float = Field(description="Seconds of them in denoising steps.")
    cache: CacheReport


class FrameDistance(BaseModel):
    """How far one frame of a video is from the same frame of another."""

    frame: int = Field(description="From 0.")
    psnr_db: float
    ssim: float


class CompareResponse(Answer):
    """One seed with the cache and without, and how far apart the outputs are."""

    seed: int
    cached: ComparedImage
    uncached: ComparedImage
    difference: str = Field(
        description="Picture, or video, of the absolute differences, the greatest drawn white; of sound, the "
        "differences themselves, the greatest as loud as can be."
    )
    identical: bool = Field(description="Whether every pixel, or sample, is the same before rounding.")
    psnr_db: float | None = Field(
        None,
        description="Peak signal-to-noise ratio, dB; of a video, the median over its frames. Left out where it is "
        "infinite: for identical pictures, or a video with most frames identical.",
    )
    ssim: float | None = Field(
        None,
        description="Structural similarity (Wang et al. 2004), mean over pixels and channels; 1: equal. Of a video, "
        "the median over its frames. Left out for sound.",
    )
    snr_db: float | None = Field(
        None,
        description="Signal-to-noise ratio of sound, dB: the power of the uncached one over that of the difference. "
        "Left out where it is infinite, for identical sounds.",
    )
    worst_frame: FrameDistance | None = Field(None, description="Of a video: the frame with the least PSNR.")
    max_difference: float = Field(
        description="Greatest difference of a channel of a pixel, of values from 0 to 1; of a sample, from -1 to 1."
    )
    mean_difference: float
    speedup: float = Field(description="Uncached seconds / cached seconds.")
    request_id: str
    warnings: list[RequestWarning] = Field(
        [], description="Parts of the request that had no effect, or another one than asked."
    )
    stats: Stats | None = Field(None, description="Of the cached picture, where include_stats asked for it.")


class QueueReport(BaseModel):
    waiting: int
    running: bool
    step: int = Field(description="Of the running generation, over all its images.")
    steps: int


class HealthResponse(Answer):
    status: Literal["loading", "ready", "failed", "draining"]
    reason: str | None = Field(None, description="What it is doing while loading; what went wrong where it failed.")
    queue: QueueReport


class QuantizationInfo(BaseModel):
    """A component whose weights have fewer bits than the model's dtype."""

    name: str
    type: str = Field(
        description="Of `quantize.quant_type`, or the library that quantised it as or before it was loaded."
    )
    layers: int = Field(description="Linear layers that are quantised.")
    bytes_before: int | None = Field(None, description="Of its weights; left out where it was loaded as it is.")
    bytes: int


class ModelInfo(Answer):
    """The loaded model and what a request to it may hold."""

    model: str
    model_path: str = Field(description="The same, for clients of cache_dit.serve: never a path of the server.")
    pipeline_class: str
    tasks: list[str]
    weights: str = Field(description="saved, or random: outputs mean nothing (model.weights).")
    dtype: str
    torch_dtype: str = Field(description='The same as cache_dit.serve has it, such as "torch.bfloat16".')
    device: str
    generator_device: str = Field(description="Where noise is drawn; cpu: a seed means the same noise on every device.")
    offload: str | None = Field(
        None, description="How components are kept in the computer's memory; left out: they are not."
    )
    configuration: str = Field(
        "", description="Name of the configuration whose settings hold: one in configs/, or the operator's file."
    )
    enable_cache: bool = Field(description="Whether a request without `speed` and `cache` runs a cache.")
    is_loaded: bool = Field(description="Always true: before, this route answers 503.")
    versions: dict[str, str]
    accepted_fields: list[str] = Field(description="Fields of GenerateRequest that this model honours.")
    defaults: dict[str, Any]
    limits: dict[str, Any]
    attention_backend: str
    cache: dict[str, Any] | None = Field(
        None,
        description="Default settings, the blocks of each list, whether it runs and why not; left out: not asked for.",
    )
    inherited_cache: dict[str, Any] | None = Field(
        None,
        description="Settings that a request's `cache` object is laid over where it names no speed: each field that it "
        "leaves out has the value here. Left out: no cache runs here.",
    )
    parallelism: dict[str, int | bool | list[str]] | None = Field(
        None,
        description="How processes share a forward pass, and how many (`world_size`); left out: one does it alone.",
    )
    quantization: list[QuantizationInfo] | None = Field(
        None, description="What is quantised, by component; left out: nothing."
    )
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

    pixels: int = Field(description="width x height, of a video times its frames; of a sound its samples")
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
    size_multiple: int | None = Field(description="Pixels; width and height must be multiples. null: no such fields.")
    limits: dict[str, Any]
    speeds: list[SpeedCapability] = Field(description="Least approximation first.")
    measured_on: str | None = Field(description="Hardware, prompts, versions and date of the speeds' figures.")
    cache: CacheCapability
    attention_backends: list[str] = Field(
        description="Those that an operator can set here: by the device and the packages installed."
    )
    quant_types: list[str] = Field(description="Of `quantize`, likewise.")
    rates: list[StepRate]


class LoraInfo(BaseModel):
    """A LoRA of this server."""

    name: str
    scale: float = Field(description="Of a request that names no LoRA.")
    min_scale: float
    max_scale: float
    fused: bool = Field(description="Part of the weights: in every picture, and no request can choose it.")
    loaded: bool = Field(description="false: it is loaded when a request first chooses it; what follows is null.")
    layers: int | None = Field(description="Layers of the model that it changes.")
    rank: int | None = Field(description="The greatest of them.")
    size_bytes: int | None
    trigger_words: str | None = Field(description="Words that it wants in the prompt, as its file says.")


class LorasResponse(BaseModel):
    """The LoRAs of this server."""

    loras: list[LoraInfo]


class FlushResponse(Answer):
    success: bool
    message: str
    freed_bytes: int = Field(description="Bytes of cached activations that were freed.")
    freed_prompt_bytes: int = Field(description="Bytes of prompts' embeddings that were freed.")


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
