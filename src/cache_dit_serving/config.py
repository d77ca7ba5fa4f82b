"""The settings tree: one YAML, each leaf overridable from the environment, checked before any weights load.

`CACHE_DIT_SERVING_CONFIG` names a file in `configs/` or gives a path; `CACHE_DIT_SERVING__MODEL__PATH=...` overrides
one leaf. Without a file's name a model's path starts from `generic`, and with neither the embedded model is served.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.findings import and_more, findings_of, known_keys, model_of_field, nearest_key

CONFIG_VARIABLE = "CACHE_DIT_SERVING_CONFIG"
OVERRIDE_PREFIX = "CACHE_DIT_SERVING__"
DEFAULT_CONFIG = "embedded"
GENERIC_CONFIG = "generic"
"""Knows nothing of a model: every default is the pipeline's own."""
MODEL_PATH_VARIABLE = f"{OVERRIDE_PREFIX}MODEL__PATH"
EMBEDDED_MODEL = "embedded"

# src/cache_dit_serving/config.py -> the bundle's root, in a checkout and in a built Bento alike.
BUNDLE_ROOT = Path(__file__).resolve().parents[2]
CONFIGS = BUNDLE_ROOT / "configs"


class Section(BaseModel):
    """A part of the tree: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSettings(Section):
    """Which pipeline to load, and how."""

    path: str = Field(
        EMBEDDED_MODEL,
        min_length=1,
        description="`embedded` (the small model in the bundle), a folder saved by `save_pretrained`, or a hub id.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")
    variant: str | None = Field(None, description="Weights variant to load, for example `fp16`.")
    pipeline_class: str | None = Field(
        None, description="Name of a diffusers pipeline class, where the folder's own should not decide."
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field("bfloat16", description="Data type of the weights.")
    device: str | None = Field(
        None, description="`cuda`, `cuda:1`, `cpu` ...; left out: the accelerator if there is one, else the CPU."
    )
    cpu_threads: int | None = Field(None, ge=1, description="Threads that one operation may use on the CPU.")


class RequestDefaults(Section):
    """What a request that leaves a field out gets; left out here too, the pipeline's own default holds."""

    width: int | None = Field(None, ge=1)
    height: int | None = Field(None, ge=1)
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=0)
    true_cfg_scale: float | None = Field(None, ge=0)
    negative_prompt: str | None = None
    pipeline_arguments: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="Further arguments of every pipeline call, for example max_sequence_length; checked at load.",
    )


Speed = Literal["lossless", "high", "balanced", "fast"]
"""From bit-identical with no cache to the most approximation."""


class MeasuredSpeed(Section):
    """What one speed does to this model's pictures, against the same seeds without a cache; see `measured_on`."""

    settings_hash: str = Field(description="Of the settings that were measured: with any others the figures are void.")
    num_inference_steps: int = Field(ge=1)
    speedup: float = Field(gt=0, description="Median of uncached seconds / seconds.")
    psnr_db: float = Field(description="Median, dB.")
    psnr_db_worst_decile: float = Field(description="A tenth of the pictures are worse.")
    ssim: float = Field(le=1, description="Median.")
    ssim_worst_decile: float = Field(le=1, description="A tenth of the pictures are worse.")
    cached_steps: float = Field(ge=0, description="Mean, of num_inference_steps.")


class SpeedSettings(Section):
    cache: CacheSettings | None = Field(None, description="Left out: derived from the section `cache`.")
    measured: MeasuredSpeed | None = None

    @field_validator("cache")
    @classmethod
    def _no_fact_of_the_family(cls, cache: CacheSettings | None) -> CacheSettings | None:
        if cache is not None and cache.enable_separate_cfg is not None:
            raise ValueError(
                "enable_separate_cfg is a fact of the family, not of a speed: it stands in the section cache"
            )
        return cache


class SpeedsSettings(Section):
    """Named cache settings of this model. `lossless` is no cache; those left out are derived, and marked unmeasured."""

    default: Speed | None = Field(
        None, description="What a request without `speed` and `cache` gets; left out: the section `cache`."
    )
    ceiling: Speed | None = Field(None, description="The most approximation that a request may ask for; left out: any.")
    warm_up: bool = Field(
        False,
        description="Draw a whole picture at each speed before ready, so that each one's rate is known from the start.",
    )
    measured_on: str | None = Field(None, description="Hardware, prompts, versions and date of the figures.")
    high: SpeedSettings = SpeedSettings()
    balanced: SpeedSettings = SpeedSettings()
    fast: SpeedSettings = SpeedSettings()

    @model_validator(mode="after")
    def _default_within_ceiling(self) -> Self:
        names = typing.get_args(Speed)
        if self.default and self.ceiling and names.index(self.default) > names.index(self.ceiling):
            raise ValueError(f"default {self.default} is above the ceiling {self.ceiling}")
        return self


class Limits(Section):
    """What one request, and all of them together, may ask of the server."""

    max_queue: int = Field(32, ge=1, description="Generations that may wait; the next one gets 429.")
    max_request_s: float = Field(1800, gt=0, description="Seconds from admission after which a request gets 504.")
    max_prompt_characters: int = Field(10_000, ge=1)
    max_body_bytes: int = Field(1_048_576, ge=1024, description="Size of a request's body.")
    max_body_s: float = Field(30, gt=0, description="Seconds within which a request's body must arrive.")
    sizes: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None,
        min_length=1,
        description="The only widths and heights (px) the model draws well; left out: every multiple it takes.",
    )
    min_side: int = Field(64, ge=1, description="Least width and height, px.")
    max_side: int = Field(4096, ge=1, description="Greatest width and height, px.")
    max_num_inference_steps: int = Field(200, ge=1)
    max_num_images: int = Field(8, ge=1)
    max_pixel_steps: int = Field(
        419_430_400,
        ge=1,
        description="Bound on width x height x num_inference_steps x num_images (default: 1024 x 1024 x 100 x 4).",
    )


class OutputSettings(Section):
    """Where pictures go that a request wants as a file or a URL."""

    root: Path = Field(Path("outputs"), description="Folder that holds every output; relative to where it is served.")
    public_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s]+$",
        description="Prefix of output URLs, where clients reach the server by another name than their Host header.",
    )


class ServerSettings(Section):
    workers: int = Field(1, ge=1, description="Worker processes; each loads the model.")
    require_cache: bool = Field(
        False, description="Fail to become ready where the cache cannot run; otherwise serve without it and say so."
    )
    warm_up: bool = Field(
        True,
        description="Draw one picture in a few steps before ready, so that the first request finds kernels and memory "
        "as the later ones do, and a model that cannot draw is never ready.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


class Settings(Section):
    """The whole tree."""

    model: ModelSettings = Field(default_factory=ModelSettings)
    cache: CacheSettings | None = Field(
        None, description="What a request gets that asks for nothing else; left out: no cache."
    )
    speeds: SpeedsSettings = Field(default_factory=SpeedsSettings)
    attention_backend: str | None = Field(None, description="A cache-dit attention backend; left out: the native one.")
    defaults: RequestDefaults = Field(default_factory=RequestDefaults)
    limits: Limits = Field(default_factory=Limits)
    outputs: OutputSettings = Field(default_factory=OutputSettings)
    server: ServerSettings = Field(default_factory=ServerSettings)

    @model_validator(mode="after")
    def _speeds_warm_up_with_the_server(self) -> Self:
        if self.speeds.warm_up and not self.server.warm_up:
            raise ValueError("speeds.warm_up has no effect with server.warm_up false; set it to false too")
        return self


def load_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings that `environ` asks for.

    Raises:
        ConfigError: no such file, not YAML, an unknown key (with its nearest neighbour) or a wrong value.
    """
    file = config_file(environ.get(CONFIG_VARIABLE) or _default_config(environ))
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), _UniqueKeyLoader) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: the file must hold a mapping of sections, not a {type(tree).__name__}")
    if "cache_config" in tree and "cache" not in tree:
        # A file written for cache_dit.load_configs calls the section so.
        tree["cache"] = tree.pop("cache_config")
    overridden = apply_overrides(tree, environ)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        source = f"{file}" + (f" with {', '.join(overridden)} from the environment" if overridden else "")
        raise ConfigError(f"{source}: {explain(error)}") from error


def _default_config(environ: Mapping[str, str]) -> str:
    """Another model than the embedded one takes nothing from its configuration: no sizes, speeds or figures."""
    path = environ.get(MODEL_PATH_VARIABLE, EMBEDDED_MODEL)
    return DEFAULT_CONFIG if path == EMBEDDED_MODEL else GENERIC_CONFIG


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key stands once in a mapping: PyYAML 6 lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice in one mapping", key_node.start_mark
                )
            # A key that is itself a list or mapping is nothing that a setting could be.
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


def config_file(name: str) -> Path:
    """The file for a name in `configs/` or a path.

    Raises:
        ConfigError: neither exists; the message lists the names there are.
    """
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        path = Path(name).expanduser()
        if not path.is_file():
            raise ConfigError(f"configuration file {name} does not exist")
        return path
    path = CONFIGS / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"no configuration named {name!r}; there are: {', '.join(config_names())}")
    return path


def config_names() -> list[str]:
    """The names that `CACHE_DIT_SERVING_CONFIG` accepts."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def apply_overrides(tree: dict[str, Any], environ: Mapping[str, str]) -> list[str]:
    """Set the leaves that `CACHE_DIT_SERVING__SECTION__KEY` variables name; returns those variables' names.

    Section names are matched in lower case, keys as the section spells them (`CACHE__FN_COMPUTE_BLOCKS` sets
    `Fn_compute_blocks`). A value that starts like a YAML list or mapping, or is `null`, is read as YAML; any other is
    text, which its field converts.
    """
    names = sorted(name for name in environ if name.startswith(CONFIG_VARIABLE.removesuffix("CONFIG")))
    names = [name for name in names if name != CONFIG_VARIABLE]
    for name in names:
        if not name.startswith(OVERRIDE_PREFIX):
            raise ConfigError(f"{name} is no setting; settings begin with {OVERRIDE_PREFIX} (two underscores)")
    for name in names:
        *sections, leaf = name.removeprefix(OVERRIDE_PREFIX).split("__")
        node, model = tree, typing.cast("type[BaseModel] | None", Settings)
        for section in sections:
            key = _spelling(section, model)
            if not isinstance(node.get(key), dict):
                node[key] = {}
            node, model = node[key], model_of_field(model, key) if model else None
        text = environ[name]
        try:
            # Below a free mapping (pipeline_arguments) no field converts the text: YAML decides there.
            as_yaml = text[:1] in "[{" or text == "null" or model is None
            node[_spelling(leaf, model)] = yaml.safe_load(text) if as_yaml else text
        except yaml.YAMLError as error:
            raise ConfigError(f"{name} is not valid YAML: {error}") from error
    return names


def explain(error: ValidationError) -> str:
    """Pydantic's findings, each with its dotted key, and the nearest known key for an unknown one."""
    sentences = []
    for finding in findings_of(error):
        if finding.kind == "extra_forbidden":
            known = known_keys(Settings, finding.keys[:-1])
            nearest = nearest_key(finding.keys[-1], known)
            hint = f"; did you mean '{nearest}'?" if nearest else f"; known keys: {', '.join(known)}"
            sentences.append(f"unknown key '{finding.field}'{hint}")
        else:
            sentences.append(f"'{finding.field}': {finding.message}" if finding.field else finding.message)
    return "; ".join(sentences) + and_more(error)


def _spelling(name: str, model: type[BaseModel] | None) -> str:
    """A key as its section spells it, from a variable's name (which is in capitals)."""
    known = {key.lower(): key for key in model.model_fields} if model else {}
    return known.get(name.lower(), name.lower())
