"""Schemas of answers, and of the values inside them."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

import pybase64
from pydantic import BaseModel, Field, PlainSerializer, SerializationInfo

from cache_dit_serving.caching.report import BlockListStats, CacheReport
from cache_dit_serving.caching.speed_settings import MeasuredSpeed, Speed
from cache_dit_serving.config.residency import Resident, SleepLevel


class Timings(BaseModel):
    """Seconds by stage, summed over the images of the request."""

    queue: float = Field(description="Admission to the start of the pipeline, without `wake`.")
    wake: float | None = Field(None, description="Waking of the model; absent if it was awake.")
    encode_prompt: float = Field(description="Start of the pipeline to the transformer's first forward pass.")
    denoise: float = Field(description="First forward pass to the end of the last step.")
    decode: float = Field(description="End of the last step to the decoded output: the VAE.")
    encode_output: float = Field(description="Encoding into the file format, outside of the pipeline.")
    prompt_hits: int = Field(
        description="Number of prompts (not seconds) whose embeddings were reused from an earlier request."
    )


class ImageStats(BaseModel):
    seed: int
    block_lists: list[BlockListStats]


class DeadlineReport(BaseModel):
    """Deadline of a request, and the estimate made at admission."""

    deadline_s: float
    estimate_s: float = Field(description="Estimated seconds at admission: queue and generation, with a margin.")
    queue_s: float = Field(description="The queue's part of the estimate.")
    speed: str = Field(description="The chosen speed, or the request's own.")


def timestamp(seconds: float) -> str:
    """Format seconds since the epoch as ISO 8601 in UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Answer(BaseModel):
    """Base of an answer that leaves out keys whose value is None.

    BentoML 1.4.39 publishes `list[X] | None` as a list, and its client fails on a null there. Clients of the old server
    also expect a missing key, and some cannot read a null. A field that may be None needs None as its default, so that
    the published schema does not require it.
    """

    def model_dump_json(self, **options: Any) -> str:
        return super().model_dump_json(**{"exclude_none": True, **options})


LONG_TEXT = 4096
"""Length of a file's base64 from which an answer's JSON is written around it, characters."""


class LongTexts(list[str]):
    """Base64 of files that an answer's JSON leaves out, in their order: see :func:`json_around`."""

    mark: ClassVar[str] = secrets.token_hex(16)
    """Text in their place: secret to this process, so no other value holds it."""


def _kept_out(text: str, info: SerializationInfo) -> str:
    if not isinstance(info.context, LongTexts) or len(text) < LONG_TEXT or not _is_base64(text):
        return text
    info.context.append(text)
    return LongTexts.mark


def _is_base64(text: str) -> bool:
    """Return whether a text is base64, in which JSON has nothing to escape. A path or a URL may need it."""
    try:
        pybase64.b64decode(text, validate=True)
    except ValueError:
        return False
    return True


FileText = Annotated[str, PlainSerializer(_kept_out, when_used="json-unless-none")]
"""File in an answer: base64 text, a path or a URL."""


def json_around(answer: BaseModel) -> bytes:
    """Return an answer's JSON. pydantic writes it around the base64 of files, which may be megabytes."""
    texts = LongTexts()
    around = answer.model_dump_json(context=texts).encode().split(LongTexts.mark.encode())
    parts = [around[0]]
    for text, after in zip(texts, around[1:], strict=True):
        parts += (text.encode(), after)
    return b"".join(parts)


class Stats(BaseModel):
    """Record of each step, present if include_stats is true."""

    cache_stats: list[ImageStats] = Field(description="One per image; for a comparison, the cached image's.")


class RequestWarning(BaseModel):
    """A part of a request that had no effect or was adjusted."""

    param: str = Field(description="Field of the request.")
    code: str = Field(
        description="unsupported_field: the loaded model cannot honour it. no_effect: another field of the request "
        "disables it. adjusted: another value was used. "
        "repeated_seed: the input picture was drawn with this seed. "
        "truncated: a tokenizer cut the text off. blanked: the server's safety check refused an output."
    )
    message: str


class GenerateResponse(Answer):
    """Answer of /generate: the output files and the report of their generation."""

    images: list[FileText] | None = Field(None, description="base64 text, paths or URLs, by output_format.")
    video: FileText | None = Field(
        None, description="Video in the same form, instead of images, if the model makes video."
    )
    audio: FileText | None = Field(None, description="Sound in the same form, if the model makes sound.")
    seeds: list[int] = Field(description="Seed of each image; requested alone, it draws the same image.")
    time_cost: float = Field(description="Seconds from inference_start_time to inference_end_time.")
    inference_start_time: str = Field(description="ISO 8601, UTC, ms.")
    inference_end_time: str = Field(description="ISO 8601, UTC, ms.")
    timings: Timings
    request_id: str
    model: str | None = Field(None, description="Name of the model that drew; absent on a server of one.")
    cache: CacheReport
    scheduler: str | None = Field(
        None, description="Name of the scheduler that drew; absent if the model has none. GET /capabilities lists them."
    )
    shift: float | None = Field(None, description="Shift of the request; absent if the scheduler drew with its own.")
    deadline: DeadlineReport | None = None
    warnings: list[RequestWarning] = Field([], description="Parts of the request that had no effect or were adjusted.")
    stats: Stats | None = Field(None, description="Record of each step, if include_stats is true.")
    peak_memory_bytes: int | None = Field(
        None,
        description="Peak allocation on the device during the generation; on a CPU, the process's peak resident "
        "memory. Absent if the system does not report it.",
    )
    weights_version: str | None = Field(
        None, description="SHA-256 of reloaded weights that drew the output; absent: those of the start."
    )
    profiles: list[str] | None = Field(None, description="Trace files in the operator's folder; absent without any.")


class ComparedImage(BaseModel):
    """One side of a comparison."""

    image: FileText | None = Field(None, description="base64 text, a path or a URL, by output_format.")
    video: FileText | None = Field(None, description="Video in the same form, if the model makes video.")
    audio: FileText | None = Field(None, description="Sound in the same form, if the model makes sound.")
    time_cost: float = Field(description="Seconds from the prompt to the output, without the queue.")
    denoise: float = Field(description="Seconds in denoising steps, a part of time_cost.")
    cache: CacheReport


class FrameDistance(BaseModel):
    """Difference between a frame of one video and the same frame of another."""

    frame: int = Field(description="Index of the frame, from 0.")
    psnr_db: float
    ssim: float | None = Field(None, description="Absent for frames with a side below 11 px.")
    flip: float


class CompareResponse(Answer):
    """One seed drawn with and without the cache, and the difference between the outputs."""

    seed: int
    scheduler: str | None = Field(None, description="Name of the scheduler that drew both; absent if there is none.")
    shift: float | None = Field(None, description="Shift of the request; absent if the scheduler drew with its own.")
    cached: ComparedImage
    uncached: ComparedImage
    difference: FileText = Field(
        description="Picture or video of the absolute differences, scaled so that the greatest is white. For sound, "
        "the signed differences, scaled to full level."
    )
    identical: bool = Field(description="True if every pixel or sample is the same before rounding.")
    psnr_db: float | None = Field(
        None,
        description="Peak signal-to-noise ratio, dB; for a video, the median over its frames. Absent if it is "
        "infinite: for identical pictures, or a video with most frames identical.",
    )
    ssim: float | None = Field(
        None,
        description="Structural similarity (Wang et al. 2004), mean over pixels and channels; 1: equal. For a video, "
        "the median over its frames. Absent for sound, and for pictures with a side below 11 px.",
    )
    flip: float | None = Field(
        None,
        description="FLIP (Andersson et al. 2020): mean difference that an observer sees, 0 (equal) to 1. For a video, "
        "the median over up to 16 evenly spaced frames. Absent for sound.",
    )
    flicker: float | None = Field(
        None,
        description="Flicker of a video, 0 (none) to 2: root mean square of the difference between the changes from a "
        "frame to the next in both videos, mean over the pairs of frames. Absent for other kinds.",
    )
    snr_db: float | None = Field(
        None,
        description="Signal-to-noise ratio of sound, dB: power of the uncached sound over power of the difference. "
        "Absent if it is infinite, for identical sounds.",
    )
    spectral_db: float | None = Field(
        None,
        description="Log-spectral distance of sound, dB; 0: equal spectra. Mean over three lengths of window. Absent "
        "for other kinds.",
    )
    worst_frame: FrameDistance | None = Field(None, description="Frame of a video with the lowest PSNR.")
    max_difference: float = Field(
        description="Greatest difference of a pixel's channel (values 0 to 1) or of a sample (values -1 to 1)."
    )
    mean_difference: float
    speedup: float = Field(description="Uncached seconds / cached seconds.")
    request_id: str
    warnings: list[RequestWarning] = Field([], description="Parts of the request that had no effect or were adjusted.")
    stats: Stats | None = Field(None, description="Record of the cached image's steps, if include_stats is true.")


class QueueReport(BaseModel):
    waiting: int
    running: bool
    step: int = Field(description="Steps done of the running generation, over all its images.")
    steps: int


class ModelHealth(BaseModel):
    """State of one of several models."""

    name: str = Field(description="Name in requests.")
    status: Literal["unloaded", "loading", "ready", "asleep", "failed", "draining"] = Field(
        description="unloaded: its first request loads it; asleep: its next request wakes it; failed: its next request "
        "tries to load it again."
    )
    level: SleepLevel | None = Field(None, description="Place of the weights while it is asleep.")
    reason: str | None = Field(None, description="Current stage while loading; cause of the failure if failed.")
    weight_bytes: int = Field(
        description="Bytes of its weights, as measured once loaded, with those that it shares with others; 0 before."
    )
    resident: Resident = Field(description="always: it never gives way to another model.")
    default: bool = Field(description="True for the model of requests that name none.")
    ready_in_s: float | None = Field(
        None, description="Seconds that it takes until it can draw, as known; 0: at once; absent: never loaded."
    )


class HealthResponse(Answer):
    status: Literal["loading", "ready", "asleep", "failed", "draining"] = Field(
        description="asleep: ready, and the next request wakes the model."
    )
    reason: str | None = Field(
        None, description="Current stage while loading; cause of the failure if failed; place of the weights if asleep."
    )
    version: str = Field(description="Version of the server.")
    queue: QueueReport
    models: list[ModelHealth] | None = Field(None, description="State of each model; absent on a server of one.")


class QuantizationInfo(BaseModel):
    """A component whose weights have fewer bits than the model's dtype."""

    name: str
    type: str = Field(
        description="A value of `quantize.quant_type`, or the library that quantised it on or before loading."
    )
    layers: int = Field(description="Number of quantised linear layers.")
    bytes_before: int | None = Field(
        None, description="Bytes of its weights before; absent if it was loaded quantised."
    )
    bytes: int


class ComponentInfo(BaseModel):
    """A network of the loaded model."""

    name: str
    file: str = Field(description="Name of the file, folder or hub id; never a path of the server.")
    format: str = Field(description="folder, or the file's format, such as `GGUF Q4_K` or `scaled FP8`.")
    dtype: str = Field(description="Type of most of its weights in memory: torch's name, or GGML's, such as Q4_K.")
    bytes: int = Field(description="Bytes of its weights in memory.")
    shared_with: list[str] = Field(
        [], description="Other models of this server whose component has equal weights: they lie in memory once."
    )


class ModelInfo(Answer):
    """The loaded model, and the fields and limits of requests to it."""

    model: str
    model_path: str = Field(description="Same as `model`, for clients of cache_dit.serve; never a path of the server.")
    pipeline_class: str
    tasks: list[str]
    weights: str = Field(description="saved, or random (model.weights): outputs are noise.")
    weights_version: str | None = Field(
        None, description="SHA-256 of weights that were reloaded; absent: those of the start."
    )
    variant: str | None = Field(None, description="Variant of the loaded files, such as fp16; absent: they have none.")
    dtype: str
    torch_dtype: str = Field(description='`dtype` as cache_dit.serve writes it, such as "torch.bfloat16".')
    device: str
    generator_device: str = Field(
        description="Device that draws noise; cpu: a seed gives the same noise on every device."
    )
    offload: str | None = Field(None, description="Offloading of components to the host's memory; absent: none.")
    configuration: str = Field(
        "", description="Name of the configuration in force: one in configs/, or the operator's file."
    )
    enable_cache: bool = Field(description="True if a request without `speed` and `cache` runs a cache.")
    is_loaded: bool = Field(description="Always true: this route answers 503 until the model is loaded.")
    versions: dict[str, str]
    encoders: dict[str, str] = Field(description="Encoder in use by output format, with its version.")
    accepted_fields: list[str] = Field(description="Fields of a request that this model honours.")
    defaults: dict[str, Any]
    limits: dict[str, Any]
    attention_backend: str
    cache: dict[str, Any] | None = Field(
        None,
        description="Default cache settings, blocks per block list, and the reason if no cache runs; absent: no cache "
        "is configured.",
    )
    inherited_cache: dict[str, Any] | None = Field(
        None,
        description="Base settings for a request that sends `cache` but no `speed`: each absent field has the value "
        "here. Absent: no cache runs.",
    )
    parallelism: dict[str, int | bool | list[str]] | None = Field(
        None,
        description="Division of a forward pass among processes, and their number (`world_size`); absent: one process.",
    )
    quantization: list[QuantizationInfo] | None = Field(None, description="Quantised components; absent: none.")
    components: list[ComponentInfo] = Field(
        [], description="Networks of the pipeline, each with the file, folder or hub id that its weights came from."
    )
    loras: list[str] = []
    memory: dict[str, int] = Field(
        description="Memory in bytes: resident memory of the process, of the device, of the cache."
    )


class LiveFigures(BaseModel):
    """Figures of live traffic: outputs of requests against the same ones drawn again without the cache."""

    outputs: int = Field(description="Number of outputs that were compared.")
    speedup: float = Field(description="Median of seconds without the cache / seconds with it.")
    cached_steps: float = Field(description="Mean.")
    medians: dict[str, float] = Field(description="Median of each measure.")
    worst_deciles: dict[str, float] = Field(description="A tenth of the outputs are farther away, by each measure.")


class SpeedCapability(BaseModel):
    """One named speed on this server."""

    name: Speed
    allowed: bool = Field(description="True if a request may choose it; false above the operator's ceiling.")
    default: bool = Field(description="True if it is the default of requests.")
    settings: dict[str, Any] | None = Field(description="Cache settings of the speed; null: no cache.")
    settings_hash: str | None
    num_inference_steps: int = Field(description="Denoising steps of a request at this speed that names none.")
    measured: MeasuredSpeed | None = Field(
        description="Figures that `tune` measured with exactly these settings on this model; null: not measured, such "
        "as derived settings."
    )
    live: LiveFigures | None = Field(
        description="Figures of live traffic with these settings; null: none is compared. GET /quality has more."
    )
    lowered_to: Speed | None = Field(
        description="Speed that requests for this one get, since live traffic misses a floor of it; null: itself."
    )
    seconds: float | None = Field(
        description="Estimated seconds of a request with the defaults, from runs since the start; null: none has run."
    )
    seconds_from: Literal["warm_up", "traffic"] | None = Field(
        description="Runs that `seconds` are from: the start alone, or requests too; null without `seconds`."
    )


class CacheCapability(BaseModel):
    """Bounds of a request's `cache` object on this model."""

    supported: bool
    reason: str | None = Field(description="Reason if it is not supported.")
    types: dict[str, bool] = Field(description="Support of each cache type.")
    block_lists: dict[str, int] = Field(
        description="Number of blocks in each cached block list; Fn + Bn must fit each."
    )
    default: dict[str, Any] | None = Field(
        description="Settings of a request without `speed` and `cache`; null: no cache."
    )
    fields: dict[str, dict[str, Any]] = Field(description="JSON schema of each field, with this model's bounds.")


class StepRate(BaseModel):
    """Step times of one output size on this server: medians over the newest outputs."""

    pixels: int = Field(description="width x height; for a video, times its frames; for a sound, its samples.")
    forward_passes: int = Field(description="Forward passes per step: 2 if guidance takes a pass of its own.")
    computed_step_s: float
    fixed_s: float = Field(
        description="Seconds outside of the steps: encoding the prompt, decoding and encoding the output."
    )
    observations: int


class Capabilities(BaseModel):
    """Machine-readable description of the requests that this server accepts."""

    model: str
    pipeline_class: str
    tasks: list[str]
    fields: dict[str, dict[str, Any]] = Field(
        description="JSON schema of each accepted field of a request, with this server's bounds."
    )
    size_multiple: int | None = Field(
        description="Pixels; width and height must be multiples of it. null: no such fields."
    )
    limits: dict[str, Any]
    speeds: list[SpeedCapability] = Field(description="Named speeds, most exact first.")
    measured_on: str | None = Field(description="Hardware, prompts, versions and date of the speeds' figures.")
    cache: CacheCapability
    attention_backends: list[str] = Field(
        description="Attention backends that an operator can set, given the device and the installed packages."
    )
    quant_types: list[str] = Field(
        description="Values of `quantize.quant_type` that an operator can set, given the device and the packages."
    )
    rates: list[StepRate]


class LoraInfo(BaseModel):
    """A LoRA that this server offers."""

    name: str
    scale: float = Field(description="Scale for a request without `loras`.")
    min_scale: float
    max_scale: float
    fused: bool = Field(description="Merged into the weights: part of every output, and not selectable.")
    loaded: bool = Field(description="false: loaded when a request first chooses it; the fields below are null.")
    layers: int | None = Field(description="Number of model layers that it changes.")
    rank: int | None = Field(description="Greatest rank of its layers.")
    size_bytes: int | None
    trigger_words: str | None = Field(description="Words to put into the prompt, from the file's metadata.")
    format: str | None = Field(description="Format of the file, by the trainer that writes it, such as `kohya`.")
    parts: dict[str, int] | None = Field(description="Number of layers that it changes, by component of the model.")
    left_out: str | None = Field(
        description="First tensors of the file that diffusers does not apply, such as those of a text encoder."
    )
    suggested_steps: int | None = Field(
        description="`num_inference_steps` that it is trained for, as its metadata or file name says. Not applied."
    )
    suggested_shift: float | None = Field(
        description="Shift of the schedule that it is trained for, as its metadata or file name says. Not applied."
    )


class LorasResponse(BaseModel):
    """The LoRAs of this server."""

    loras: list[LoraInfo]


class FlushResponse(Answer):
    success: bool
    message: str
    freed_bytes: int = Field(description="Freed bytes of cached activations.")
    freed_prompt_bytes: int = Field(description="Freed bytes of prompt embeddings.")


class SleepResponse(Answer):
    """Result of `POST /sleep`."""

    status: Literal["asleep"]
    level: SleepLevel = Field(description="Place of the weights: host memory, or the disk alone.")
    freed_bytes: int = Field(
        description="Bytes given back: of the devices, or on a CPU of the weights; with `parallelism` those of rank 0. "
        "0 if the model was asleep at this level before."
    )
    seconds: float = Field(description="Seconds that it took, without the wait for the running generation.")
    workers: int = Field(description="Worker processes of this server. The answer is of one of them.")


class ReloadResponse(Answer):
    """Result of `POST /models/{name}/reload`."""

    model: str
    weights_version: str = Field(
        description="SHA-256 of what `sha256sum` prints of the files, in the order of their paths within the folder."
    )
    components: list[str] = Field(description="Components that have new weights.")


class WakeResponse(Answer):
    """Result of `POST /wake`."""

    status: Literal["ready"]
    seconds: float = Field(description="Seconds that waking took; 0 if the model was awake.")
    workers: int = Field(description="Worker processes of this server. The answer is of one of them.")


class ErrorDetail(BaseModel):
    message: str
    type: str
    code: str
    param: str | None = None


class ErrorResponse(BaseModel):
    """The one shape of every error."""

    error: ErrorDetail
    request_id: str
    cache: CacheReport | None = Field(
        None, description="Cache report, if cache.strict refused a request because no step was reused."
    )
    deadline: DeadlineReport | None = Field(None, description="Best estimate, if no speed meets the deadline.")
