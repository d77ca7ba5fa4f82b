"""The settings tree: its sections, their keys and defaults. :mod:`config.reading` reads it."""

from __future__ import annotations

import base64
import binascii
import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.caching.speed_settings import SpeedsSettings
from cache_dit_serving.config.acceleration import (
    CompileSettings,
    ParallelismSettings,
    ProfilingSettings,
    QuantizeSettings,
)
from cache_dit_serving.config.c2pa import C2paSettings
from cache_dit_serving.config.keys import ApiKeys
from cache_dit_serving.config.model_entry import ModelEntry, check_names
from cache_dit_serving.config.object_store import object_store
from cache_dit_serving.config.residency import ResidencySettings, SleepLevel
from cache_dit_serving.config.safety import SafetySettings
from cache_dit_serving.config.schedulers import SCHEDULER_NAME, OfferedScheduler, by_name
from cache_dit_serving.config.shadow import ShadowSettings
from cache_dit_serving.logs import LogFormat
from cache_dit_serving.private import Readers
from cache_dit_serving.section import Section

HOST = r"^(\*\.)?[A-Za-z0-9][A-Za-z0-9.-]*(:\d{1,5})?$"
SERVER_NAME = r"^(\*\.)?[A-Za-z0-9][A-Za-z0-9._-]*$|^[0-9A-Fa-f:.]+$"
ADDRESS = r"^https?://[^/\s]+(/\S*)?$"
ORIGIN = r"^(\*|https?://[^/\s,*]+|null)$"
WEBHOOK_SECRET_PREFIX = "whsec_"
EMBEDDED_MODEL = "embedded"


def _is_network(network: str) -> str:
    ipaddress.ip_network(network)
    return network


Network = Annotated[str, AfterValidator(_is_network)]
LORA_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"


class LoraSettings(Section):
    """A LoRA that is loaded with the model."""

    name: str = Field(pattern=LORA_NAME, description="Name in requests.")
    path: str = Field(
        description="A .safetensors file (here, `owner/name/file.safetensors` or its address on the hub), a folder "
        "with one, a hub id, or embedded/monochrome."
    )
    weight_name: str | None = Field(
        None, description="The file in the folder or of the hub id, where there are several."
    )
    scale: float = Field(
        1.0, description="Scale in a request that names no LoRA; 0: only requests that name it use it."
    )
    max_scale: float = Field(2.0, gt=0, description="Bound on the scale of a request, positive or negative.")
    fuse: bool = Field(
        False,
        description="Add it to the weights for good: no cost in a step, and no request can leave it out.",
    )
    transformer: Literal["transformer", "transformer_2"] | None = Field(
        None,
        description="Transformer that it is for, on a model with two: `transformer_2` for the low-noise LoRA of Wan "
        "2.2. Left out: the first.",
    )

    @model_validator(mode="after")
    def _scale_within_bounds(self) -> Self:
        if abs(self.scale) > self.max_scale:
            raise ValueError(f"scale {self.scale:g} is beyond max_scale {self.max_scale:g}")
        return self


class ModelSettings(Section):
    """The pipeline to load, its device, data type and LoRAs."""

    path: str = Field(
        EMBEDDED_MODEL,
        min_length=1,
        description="`embedded` (the small model in the bundle), a folder saved by `save_pretrained`, a hub id, or a "
        "`.safetensors` or `.gguf` file, here or on the hub (`owner/name/file.gguf`, or its address).",
    )
    base: str | None = Field(
        None,
        min_length=1,
        description="Folder or hub id that completes a transformer alone, with text encoders, VAE, scheduler and "
        "tokenizer. For a whole pipeline in one file: the configurations of its components.",
    )
    components: dict[str, str] = Field(
        default_factory=dict,
        description="Folder, hub id or file by component, in place of the model's own: "
        "`transformer: ./flux-Q4_K.gguf`, `vae: ./my-vae`.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")
    subfolder: str | None = Field(
        None,
        pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$",
        description="Folder within `path` that holds `model_index.json`, for a folder or a hub id with several models.",
    )
    variant: str | None = Field(
        None,
        description="Weights variant to load, for example `fp16`. Left out: files without a variant, or else the only "
        "variant of a folder or hub id.",
    )
    pipeline_class: str | None = Field(
        None, description="Name of a diffusers pipeline class, in place of the folder's own."
    )
    weights: Literal["saved", "random"] = Field(
        "saved",
        description="random: read the configurations alone and draw the weights from one seed, to measure time and "
        "memory before the real weights are there. The folder needs `model_index.json`, each component's "
        "configuration and the tokenizers. The outputs mean nothing; model info and the log say so.",
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field("bfloat16", description="Data type of the weights.")
    device: str | None = Field(
        None, description="`cuda`, `cuda:1`, `cpu` ...; left out: the accelerator if there is one, else the CPU."
    )
    offload: Literal["model", "sequential", "group", "layerwise"] | None = Field(
        None,
        description="Keep components in the computer's memory until they are needed. model: one whole component at a "
        "time on the GPU; sequential (accelerate), group (diffusers), layerwise (cache-dit): layer by layer, for the "
        "least memory and much more time.",
    )
    device_map: Literal["balanced"] | None = Field(
        None, description="balanced: spread whole components over several GPUs as they are loaded."
    )
    vae_slicing: bool = Field(False, description="Decode the pictures of a batch one by one.")
    vae_tiling: bool = Field(False, description="Decode a picture tile by tile: less memory, and seams may show.")
    generator_device: str = Field(
        "cpu",
        description="Device that draws the noise. `cpu`: a seed gives the same noise on every device; `cuda`: on the "
        "GPU, as cache_dit.serve did.",
    )
    cpu_threads: int | None = Field(None, ge=1, description="Threads that one operation may use on the CPU.")
    scheduler: dict[str, bool | int | float | str | None] = Field(
        default_factory=dict,
        description="Keys of the scheduler's configuration to change, such as `flow_shift: 5.0` for Wan at 720p; a "
        "key that its class does not have stops the start.",
    )
    schedulers: Annotated[
        dict[Annotated[str, Field(pattern=SCHEDULER_NAME)], OfferedScheduler], BeforeValidator(by_name)
    ] = Field(
        default_factory=dict,
        max_length=32,
        description="Schedulers that requests may choose beside the model's own: a list of known names, such as "
        "`[euler, unipc]`, or names with the class and the keys of each. One that the pipeline cannot draw with is "
        "left out at the start, with the reason in the log and in the refusal of a request.",
    )
    loras: tuple[LoraSettings, ...] = Field((), max_length=32, description="LoRAs that are loaded with the model.")

    lora_folder: Path | None = Field(
        None,
        description="Folder whose .safetensors files requests may choose too, by their names without the suffix. Each "
        "is loaded when it is first chosen.",
    )

    reload_folder: Path | None = Field(
        None,
        description="Folder below which weights lie that POST /models/{name}/reload may put in the place of the "
        "loaded ones. Left out: none may.",
    )

    @field_validator("loras")
    @classmethod
    def _names_differ(cls, loras: tuple[LoraSettings, ...]) -> tuple[LoraSettings, ...]:
        names = [lora.name for lora in loras]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two LoRAs have the name {twice}")
        return loras

    @model_validator(mode="after")
    def _random_weights_alone(self) -> Self:
        for key in ("variant", "device_map", "base", "components"):
            if self.weights == "random" and getattr(self, key):
                raise ValueError(f"{key} has no effect on random weights; leave it out")
        return self

    @model_validator(mode="after")
    def _no_subfolder_of_the_embedded_model(self) -> Self:
        if self.path == EMBEDDED_MODEL and self.subfolder is not None:
            raise ValueError("subfolder has no effect on the embedded model; name a folder or a hub id by path")
        return self


Fact = bool | int | float | str | tuple[int | float | str, ...] | None


class AboutSettings(Section):
    """Description of a configuration's model for `cache-dit-serving models`, and the facts that identify its folder."""

    task: str | None = Field(None, description="Task of the model.")
    parameters: float | None = Field(None, gt=0, description="Parameters of all its networks, in billions.")
    licence: str | None = Field(None, description="Licence of the weights.")
    hub_ids: tuple[str, ...] = Field((), description="Further hub ids of the model.")
    pipeline_class: str | None = Field(None, description="The diffusers class in its folder's model_index.json.")
    components: dict[str, dict[str, Fact] | bool] = Field(
        default_factory=dict,
        description="Facts that tell its folder from others of the class. By component: values of its configuration, "
        "or true or false for its presence. `pipeline` stands for model_index.json itself.",
    )
    recognised: bool = Field(
        True,
        description="Choose this configuration by its model's path. false: by its name alone, as "
        "`qwen-image-lightning` is, which is Qwen-Image with a fused LoRA.",
    )


class RequestDefaults(Section):
    """Defaults for fields that a request leaves out. A field left out here too takes the pipeline's own default."""

    width: int | None = Field(None, ge=1)
    height: int | None = Field(None, ge=1)
    num_inference_steps: int | None = Field(None, ge=1)
    num_frames: int | None = Field(None, ge=2)
    fps: float | None = Field(None, gt=0)
    audio_length_s: float | None = Field(None, gt=0)
    guidance_scale: float | None = Field(None, ge=0)
    true_cfg_scale: float | None = Field(None, ge=0)
    negative_prompt: str | None = None
    strength: float | None = Field(None, gt=0, le=1)
    max_sequence_length: int | None = Field(None, ge=1)
    pipeline_arguments: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="Further arguments of every pipeline call, for example use_resolution_binning; checked at load.",
    )

    @field_validator("pipeline_arguments")
    @classmethod
    def _have_no_setting(cls, arguments: dict[str, bool | int | float | str]) -> dict[str, bool | int | float | str]:
        for name in arguments:
            if name in cls.model_fields:
                raise ValueError(f"{name} is a setting of its own; write defaults.{name} instead")
        return arguments


class Limits(Section):
    """Bounds on one request, and on all requests together."""

    max_queue: int = Field(32, ge=1, description="Generations that may wait; a further one gets 429.")
    max_priority: int = Field(
        0, ge=0, le=100, description="Greatest `priority` of a request; a greater one is refused. 0: all are equal."
    )
    max_followers: int = Field(
        64,
        ge=1,
        description="Event streams of jobs that one caller may follow at a time, at a worker; a further one gets "
        "429. Without keys all are one caller.",
    )
    max_kept_jobs: int = Field(1000, ge=0, description="Jobs that have ended and are kept with their files.")
    keep_jobs_s: float = Field(86400, ge=0, description="Seconds after its end that a job is kept with its files.")
    max_request_s: float = Field(
        1800, gt=0, description="Seconds from admission to the queue after which a request gets 504."
    )
    max_prompt_characters: int = Field(10_000, ge=1, description="Characters of a prompt.")
    max_body_bytes: int = Field(1_048_576, ge=1024, description="Size of a request's body, bytes.")
    max_upload_bytes: int = Field(
        32 * 2**20,
        ge=1024,
        description="Size of the body of /generate, /compare and /jobs, which may hold pictures, bytes.",
    )
    max_step_s: float = Field(
        1800,
        gt=0,
        description="Seconds without a denoising step, or for what comes before and after them, after which the "
        "pipeline counts as hung and /livez fails.",
    )
    max_body_s: float = Field(30, gt=0, description="Seconds within which a request's body must arrive.")
    sizes: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None,
        min_length=1,
        description="The only widths and heights (px) that requests may choose. Left out: every multiple that the "
        "model takes, from `min_side` to `max_side`.",
    )
    min_side: int = Field(64, ge=1, description="Least width and height, px.")
    max_side: int = Field(4096, ge=1, description="Greatest width and height, px.")
    max_num_inference_steps: int = Field(200, ge=1, description="Denoising steps of one request.")
    max_sequence_length: int = Field(4096, ge=1, description="Tokens of a prompt; a pipeline's own bound holds too.")
    extra_args: tuple[str, ...] | None = Field(
        None, description="Names that requests may set in `extra_args`; `[]`: none. Left out: all."
    )
    max_num_images: int = Field(10, ge=1, description="Images of one request; OpenAI's limit is 10 too.")
    max_num_frames: int = Field(257, ge=2, description="Frames of one video.")
    max_loras: int = Field(
        4, ge=1, description="LoRAs of model.lora_folder that are kept loaded; the one used longest ago is freed first."
    )
    prompt_cache_bytes: int = Field(
        256 * 2**20,
        ge=0,
        description="Bytes of prompt embeddings kept on the device, so that a prompt is not encoded twice; those "
        "used longest ago go first. Each caller's are apart, so that no caller learns the prompts of another. 0: "
        "none are kept.",
    )
    max_audio_s: float = Field(300, gt=0, description="Seconds of one sound.")
    max_pixel_steps: int | None = Field(
        None,
        ge=1,
        description="Bound on width x height x num_frames x num_inference_steps x num_images. Left out: "
        "1024 x 1024 x 100 x 4 for pictures, 1280 x 720 x 129 x 50 for video.",
    )


class InputSettings(Section):
    """Images and videos that requests bring."""

    max_bytes: int = Field(20 * 2**20, ge=1024, description="Size of one file, bytes.")
    max_pixels: int = Field(
        2**25, ge=4096, description="Pixels of all pictures of one request. Each takes 3 bytes while the request waits."
    )
    max_side: int = Field(
        16_384,
        ge=64,
        description="Pixels of one side of a picture or frame; one side may be at most 32 times the other.",
    )
    max_video_pixels: int = Field(
        1280 * 720 * 129,
        ge=4096,
        description="Pixels of all frames that are read of a video; default: 1280 x 720 x 129. Each takes 3 bytes "
        "while the request waits.",
    )
    decoders: int = Field(
        2,
        ge=1,
        le=64,
        description="Processes that decode and resize files, each those of one request at a time. They start with "
        "the first file and take about 70 MB each.",
    )
    max_decode_s: float = Field(
        20, gt=0, description="Seconds within which the files of one request must be decoded, once a process is free."
    )
    max_decode_bytes: int = Field(
        2**30, ge=2**24, description="Memory that a process may take to decode, beyond its libraries; on Linux alone."
    )
    url_hosts: tuple[Annotated[str, Field(pattern=HOST)], ...] = Field(
        (),
        description="Hosts whose http and https addresses are opened: `cdn.example.org`, `*.example.org`, and with a "
        "port where it is not the usual one, `images:9000`.",
    )
    url_networks: tuple[Network, ...] = Field(
        (), description="Networks that those hosts may lie in although they are not public: `10.1.0.0/16`."
    )
    fetch_s: float = Field(10, gt=0, description="Seconds within which a picture must come from its address.")
    folders: tuple[Path, ...] = Field(
        (), description="Folders of the server whose pictures requests may name by their absolute path."
    )


EncoderChoice = Literal["x264", "nvenc", "auto"]


class OutputSettings(Section):
    """Storage of outputs that are returned as a file or a URL."""

    root: Path = Field(
        Path("outputs"),
        description="Folder that holds every output; relative to the server's working directory. It must be writable.",
    )
    public_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s]+$",
        description="Prefix of output URLs, if clients cannot reach the server by the request's Host header.",
    )
    keep_s: float | None = Field(
        86400, gt=0, description="Seconds after which an output is deleted, a job's with its job; null: never."
    )
    max_bytes: int | None = Field(
        None, ge=1, description="Bytes of all outputs; above that the oldest are deleted. Left out: no bound."
    )
    store: str | None = Field(
        None,
        description="Object storage that holds every output instead: s3://bucket/prefix, gs://bucket/prefix or "
        "az://container/prefix. Credentials come from the environment, as AWS_ACCESS_KEY_ID does.",
    )
    store_options: dict[str, str | bool] = Field(
        default_factory=dict,
        repr=False,
        description="Options of the object storage, by obstore's names: endpoint, region, allow_http.",
    )
    readers: Readers = Field(
        "user",
        description="Users of the machine who may read the files: the server's own, its group, or all. More than "
        "`user` is for clients that fetch them by `output_format: path`.",
    )
    sign_s: int = Field(
        3600,
        ge=1,
        le=604_800,
        description="Seconds for which the URL of an output is valid, in object storage and where there are API keys.",
    )

    provenance: bool = Field(
        True,
        description="State in every file that a model made it: IPTC's digital source type, in the file's XMP metadata.",
    )
    c2pa: C2paSettings | None = Field(
        None, description="Sign every output by C2PA with the operator's certificate; left out: no signature."
    )

    video_encoder: EncoderChoice = Field(
        "x264",
        description="Encoder of MP4 files: x264 on the CPU (equal frames give equal files); nvenc on a GPU that has an "
        "encoder (L4, L40S, RTX; not A100, H100, H200); auto: nvenc where it can be opened.",
    )

    @model_validator(mode="after")
    def _signs_what_it_states(self) -> Self:
        if self.c2pa is not None and not self.provenance:
            raise ValueError("c2pa signs what provenance states; leave provenance: false out")
        return self

    @model_validator(mode="after")
    def _store_is_valid(self) -> Self:
        if self.store is not None:
            try:
                object_store(self.store, self.store_options)
            except ValueError as error:
                raise ValueError(f"store or store_options: {error}") from error
        elif self.store_options:
            raise ValueError("store_options have no effect without store")
        return self


class JobsSettings(Section):
    """Storage of jobs, and their recovery after the end of a server."""

    database: str | None = Field(
        None,
        repr=False,
        description="URL as SQLAlchemy takes it, such as `postgresql://user:password@host/name` for servers on "
        "several machines; left out: the SQLite file jobs.sqlite3 below outputs.root. Servers that name the same one "
        "share the limits of their keys.",
    )
    interrupted: Literal["requeue", "fail"] = Field(
        "requeue",
        description="A job that ran when the server was killed. requeue: begin it again, three times at most; fail: "
        "mark it failed.",
    )
    lease_s: float = Field(
        15,
        ge=5,
        description="Seconds after a server's last heart-beat at which other servers take over its jobs. It writes one "
        "a second, and waits up to 2 s for the database.",
    )


def webhook_key(secret: str) -> bytes:
    """Return the key, in bytes, that a webhook secret encodes.

    Raises:
        ValueError: the secret is not `whsec_` and base64 of 24 bytes or more.
    """
    try:
        key = base64.b64decode(secret.removeprefix(WEBHOOK_SECRET_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith(WEBHOOK_SECRET_PREFIX) or len(key) < 24:
        raise ValueError(f"should be {WEBHOOK_SECRET_PREFIX} and at least 24 random bytes as base64")
    return key


class WebhookSettings(Section):
    """Receivers of webhooks about jobs, and the secret that signs the messages."""

    hosts: tuple[Annotated[str, Field(pattern=HOST)], ...] = Field(
        (), description="Hosts that `webhook_url` may be on, as in inputs.url_hosts; none: no job has one."
    )
    networks: tuple[Network, ...] = Field(
        (), description="Networks that those hosts may lie in although they are not public: `10.1.0.0/16`."
    )
    secret: str | None = Field(
        None,
        repr=False,
        description="Secret that signs messages: `whsec_` and 24 random bytes or more as base64. Needed with "
        "`hosts`; give it by the variable CACHE_DIT_SERVING__WEBHOOKS__SECRET.",
    )
    timeout_s: float = Field(10, gt=0, description="Seconds within which a receiver must answer.")

    @field_validator("secret")
    @classmethod
    def _is_a_key(cls, secret: str | None) -> str | None:
        if secret is not None:
            webhook_key(secret)
        return secret

    @model_validator(mode="after")
    def _signed(self) -> Self:
        if self.hosts and self.secret is None:
            raise ValueError("hosts needs secret: every message is signed")
        return self


class PreviewSettings(Section):
    """Small images of an output while it is drawn, for clients that follow it."""

    allow: bool = Field(True, description="Allow previews; false: a request for them is refused.")
    every: int = Field(
        0,
        ge=0,
        description="Denoising steps from one preview to the next, for followers of a job who do not say how many they "
        "want; 0: no previews for these.",
    )
    by: Literal["projection", "vae"] = Field(
        "projection",
        description="projection: colours by a linear map of the latents, made on another thread; the first preview "
        "fits it to the autoencoder, which decodes 8 small pictures. vae: the latents as the autoencoder decodes "
        "them, between two steps; each adds about `timings.decode`.",
    )
    side: int = Field(256, ge=16, le=1024, description="Longer side of a preview, px at most.")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.every and not self.allow:
            raise ValueError("previews.every and previews.allow: false contradict each other; leave one out")
        return self


class ServerSettings(Section):
    """The server's processes, keys, network access and log."""

    workers: int = Field(1, ge=1, description="Worker processes, each with the model and with GPUs of its own.")
    gpus_per_worker: int = Field(
        1, ge=1, description="GPUs of each worker, not shared with another one; several for model.device_map."
    )
    queue_order: Literal["arrival", "shortest"] = Field(
        "arrival",
        description="Order of the requests of one priority and caller. arrival: first come, first served; shortest: "
        "the least expected time first.",
    )
    drain_s: float | None = Field(
        None,
        ge=0,
        description="Seconds that a running generation has to end at shutdown. After that a job is put back for the "
        "next server, and other requests get 503. Left out: no limit.",
    )
    sleep_after_s: float | None = Field(
        None,
        gt=0,
        description="Seconds without a request after which the model goes to sleep: its memory is given "
        "back, and the next request wakes it. Shadow runs do not count as requests. Left out: it stays awake.",
    )
    sleep_level: SleepLevel | None = Field(
        None,
        description="Place of the weights meanwhile. host: host memory, from where they are copied back; disk: none, "
        "so the model is loaded again. Left out: host for a model on CUDA devices, else disk.",
    )
    switch_after_s: float | None = Field(
        None,
        ge=0,
        description="With several models: seconds for which requests for a model in memory may overtake one whose "
        "model must be loaded first; 0: none overtakes it. Left out: twice as long as that load is known to take, or "
        "as long as all that wait take to draw, if that is longer.",
    )
    model_names: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        (),
        description="Names of the model for OpenAI's clients, such as `gpt-image-1`; answers have the first. None: "
        "the model's own name.",
    )
    api_keys: ApiKeys = Field(
        (),
        repr=False,
        description="Keys of the callers that may use the server: texts, or entries of `name`, `key` (or its "
        "`sha256`), `scopes`, `requests_per_minute` and `max_live`. None here and no file: no key is needed.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="YAML or JSON file with a list as in api_keys, read again within a second of a change. A file "
        "that cannot be read leaves the keys of before.",
    )
    open_routes: tuple[Literal["health", "metrics", "docs"], ...] = Field(
        ("health", "metrics", "docs"),
        description="Routes that need no key where there are keys. health: /livez, /readyz, /healthz and /health; "
        "metrics: /metrics; docs: /, /ui, /docs and their files, /openapi.json and /favicon.ico.",
    )
    allowed_hosts: tuple[Annotated[str, Field(pattern=SERVER_NAME)], ...] = Field(
        (),
        description="Names and addresses under which the server answers, without ports: `draw.example.com`, "
        "`*.internal.example`, `127.0.0.1`. Left out: all. Probes and /metrics are answered under any, since probes "
        "use the pod's address.",
    )
    cors_origins: tuple[Annotated[str, Field(pattern=ORIGIN)], ...] = Field(
        (),
        description="Origins whose pages may call the server from a browser: `https://studio.example.com`; `*`: all. "
        "None: no other origin.",
    )
    trusted_proxies: tuple[Network, ...] = Field(
        (),
        description="Addresses and networks of proxies, such as `10.0.0.0/8`, whose `X-Forwarded-Proto` and "
        "`X-Forwarded-For` are trusted, beside 127.0.0.1. URLs in answers then have the scheme that the proxy's "
        "clients use; with outputs.public_url they have its. The log names a proxy that is not listed.",
    )
    require_cache: bool = Field(
        False,
        description="Fail the load if the configured cache cannot run on the model. false: serve without a cache; "
        "the log, /health, /get_model_info, /capabilities and each answer say so.",
    )
    unsupported_fields: Literal["refuse", "warn"] = Field(
        "refuse",
        description="A request field that the loaded model does not support. refuse: refuse the request; warn: "
        "ignore the field and report it in the answer's `warnings`. A size off the model's grid is refused or "
        "rounded down. The launcher sets `warn` unless the configuration says otherwise. A field of a task that is "
        "not served is refused either way.",
    )
    warm_up: bool = Field(
        True,
        description="Draw one output of the default size in a few steps before the server is ready; /health and the "
        "log show the progress. The first request then takes as long as later ones, and a model that cannot draw is "
        "never ready.",
    )
    on_load_failure: Literal["stay", "exit", "retry"] = Field(
        "stay",
        description="Reaction to a model that cannot be loaded. stay: the worker answers 503 with the reason; exit: "
        "the server ends with status 3; retry: load again after 5 s, then after twice as long each time, 300 s at "
        "most.",
    )
    otlp_endpoint: Annotated[str, Field(pattern=ADDRESS)] | None = Field(
        None,
        description="Address of an OpenTelemetry collector that takes OTLP over HTTP, such as `http://otel:4318`: each "
        "request's spans are sent there. Left out: that of `OTEL_EXPORTER_OTLP_ENDPOINT` in the environment; without "
        "it there are none.",
    )
    trace_sample_rate: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the requests whose spans are sent, where their own `traceparent` does not say it.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least level of this server's log; requests of probes are DEBUG."
    )
    log_format: LogFormat = Field(
        "text", description="text: lines for people; json: one JSON object a line. For all processes and libraries."
    )

    @property
    def has_keys(self) -> bool:
        """True if only callers with an API key may use the server."""
        return bool(self.api_keys) or self.api_keys_file is not None


class Settings(Section):
    """The whole settings tree: its sections, and the checks between them."""

    about: AboutSettings = Field(default_factory=AboutSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    cache: CacheSettings | None = Field(
        None, description="Cache settings of a request that sends none and no speed; left out: no cache."
    )
    speeds: SpeedsSettings = Field(default_factory=SpeedsSettings)
    quantize: QuantizeSettings | None = Field(None, description="Weights at fewer bits; left out: at model.dtype.")
    parallelism: ParallelismSettings | None = Field(
        None, description="One forward pass on several GPUs; left out: on one."
    )
    compile: CompileSettings | None = Field(None, description="torch.compile; left out: eager, as torch has it.")
    attention_backend: str | None = Field(None, description="A cache-dit attention backend; left out: the native one.")
    defaults: RequestDefaults = Field(default_factory=RequestDefaults)
    limits: Limits = Field(default_factory=Limits)
    inputs: InputSettings = Field(default_factory=InputSettings)
    outputs: OutputSettings = Field(default_factory=OutputSettings)
    jobs: JobsSettings = Field(default_factory=JobsSettings)
    webhooks: WebhookSettings = Field(default_factory=WebhookSettings)
    previews: PreviewSettings = Field(default_factory=PreviewSettings)
    safety: SafetySettings = Field(default_factory=SafetySettings)
    shadow: ShadowSettings = Field(default_factory=ShadowSettings)
    profiling: ProfilingSettings = Field(default_factory=ProfilingSettings)
    models: Annotated[tuple[ModelEntry, ...], AfterValidator(check_names)] = Field(
        (), max_length=100, description="Several models of one server. Empty: the sections above are its only model."
    )
    residency: ResidencySettings = Field(default_factory=ResidencySettings)
    server: ServerSettings = Field(default_factory=ServerSettings)

    @property
    def gpus_per_worker(self) -> int:
        """GPUs of each worker: one for each rank on this machine, or `server.gpus_per_worker` without parallelism."""
        return self.parallelism.ranks_per_node if self.parallelism else self.server.gpus_per_worker

    @model_validator(mode="after")
    def _offload_agrees_with_the_others(self) -> Self:
        model = self.model
        if model.offload is None:
            return self
        if model.device_map is not None:
            raise ValueError("model.offload and model.device_map contradict each other; leave one out")
        if model.lora_folder is not None:
            raise ValueError("model.lora_folder: no LoRA can be loaded later with model.offload; use model.loras")
        if model.offload != "model" and (self.compile or self.quantize):
            what = "compile" if self.compile else "quantize"
            raise ValueError(f"{what} does not work with model.offload: {model.offload}; offload: model does")
        return self

    @model_validator(mode="after")
    def _parallelism_agrees_with_the_others(self) -> Self:
        if self.parallelism is None:
            return self
        if not self.parallelism.compute_comm_overlap and self.compile is None:
            raise ValueError("parallelism.compute_comm_overlap has no effect without compile; leave it out")
        if self.parallelism.nodes > 1 and self.server.workers > 1:
            raise ValueError("server.workers must be 1 with several parallelism.nodes")
        for key in ("offload", "device_map"):
            if getattr(self.model, key) is not None:
                raise ValueError(f"model.{key} does not work with parallelism; leave one out")
        if self.parallelism.tp_size and (self.quantize or self.model.loras or self.model.lora_folder):
            what = "quantize" if self.quantize else "model.loras"
            raise ValueError(f"{what} does not work with parallelism.tp_size; ulysses_size or ring_size do")
        return self

    @model_validator(mode="after")
    def _no_previews_of_outputs_that_are_checked(self) -> Self:
        if self.safety.sees_outputs and self.previews.every:
            raise ValueError("previews.every has no effect with safety.check, which sees outputs; leave it out")
        return self

    @model_validator(mode="after")
    def _webhook_of_speeds_is_on_an_open_host(self) -> Self:
        if self.shadow.webhook_url is None:
            return self
        address = urlsplit(self.shadow.webhook_url)
        if not {address.netloc, address.hostname} & set(self.webhooks.hosts):
            raise ValueError(f"shadow.webhook_url is on {address.netloc}, which is not in webhooks.hosts; add it there")
        return self

    @model_validator(mode="after")
    def _speeds_warm_up_with_the_server(self) -> Self:
        if self.speeds.warm_up and not self.server.warm_up:
            raise ValueError("speeds.warm_up has no effect with server.warm_up false; set it to false too")
        if self.compile and self.compile.sizes and not self.server.warm_up:
            raise ValueError("compile.sizes has no effect with server.warm_up false; leave it out")
        return self
