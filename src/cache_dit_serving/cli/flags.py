"""Flags of the launcher. One table defines the parser, the settings they fill, their help and docs/flags.md."""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cache_dit_serving.caching.step_masks import POLICIES
from cache_dit_serving.cli.command_line import CommandLine
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.config.variables import variable_of
from cache_dit_serving.findings import model_of_field


class Heading(Enum):
    """Headings of `--help` and of docs/flags.md, each with a note on all its flags."""

    MODEL = ("Model", "")
    CACHE = ("Cache", "settings of DBCache; without --cache, or a cache in the config, they are refused")
    REQUESTS = ("Requests", "defaults for fields that a request leaves out")
    SERVER = ("Server", "")
    PARALLELISM = ("Parallelism", "")
    QUANTISATION = ("Quantisation", "")
    LORA = ("LoRA", "")
    MEMORY = ("Memory, compilation and profiling", "")
    OLD = ("Of old command lines", "accepted, without effect")


@dataclass(frozen=True)
class Flag:
    """One flag of the launcher.

    Attributes:
        names: the flag, then its aliases.
        leaf: dotted key of the setting that it fills; None: a flag without a setting.
        help: help text; empty for a flag of cache_dit.serve that has no effect here.
        const: value that a flag without a value gives its setting, if not true.
        default: default of a flag without a setting; other flags have their setting's.
        many: True if it takes several values.
        kind: type of the values of a flag that has neither a setting nor a default.
        required: True if the launcher needs it or --config, although its setting has a default.
        old_default: default in cache_dit.serve as last released (cache-dit 1.3.5); "" if it had no such flag.
        differs: difference from that server's flag, for docs/flags.md.
        state: `works`, or `idle`: accepted without effect.
    """

    group: Heading
    names: tuple[str, ...]
    help: str = ""
    leaf: str | None = None
    const: str | None = None
    default: str | int | None = None
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    required: bool = False
    takes_value: bool = True
    many: bool = False
    kind: type = str
    old_default: str = ""
    differs: str = ""
    state: Literal["works", "idle"] = "works"

    @property
    def dest(self) -> str:
        """Attribute of the parsed flags that holds its value."""
        return self.names[0].lstrip("-").replace("-", "_")

    @property
    def variable(self) -> str | None:
        """Environment variable of the same setting; None without a setting."""
        return variable_of(self.leaf) if self.leaf else None

    @property
    def default_text(self) -> str:
        """Default value, as docs and help show it."""
        if self.is_switch:
            return "off"
        value: object = self.default
        if self.leaf and not self.required:
            value = _field(self.leaf).get_default(call_default_factory=True)
        if isinstance(value, tuple):
            return " ".join(map(str, value))
        return "none" if value is None or value == {} else str(value)

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        """Add the flag to a parser."""
        if self.state == "idle":
            nothing_read = {} if self.takes_value else {"action": "store_true", "default": None}
            parser.add_argument(*self.names, help=argparse.SUPPRESS, **nothing_read)  # type: ignore[arg-type]
        elif self.is_switch:
            parser.add_argument(*self.names, action="store_true", default=None, help=self.help)
        else:
            default = self.default_text
            parser.add_argument(
                *self.names,
                type=self._type,
                choices=self.choices or self._literal,
                nargs="+" if self.many else None,
                metavar=self.metavar or {int: "N", float: "X"}.get(self._type),
                default=self.default,
                help=self.help if default == "none" else f"{self.help} (default: {default})",
            )

    @property
    def is_switch(self) -> bool:
        return self.const is not None or not self.takes_value or bool in self._kinds

    @property
    def _kinds(self) -> tuple[object, ...]:
        """Types of the value, without None."""
        if self.leaf is None:
            return (self.kind if self.default is None else type(self.default),)
        annotation = _field(self.leaf).annotation
        parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        return tuple(part for part in parts if part is not types.NoneType)

    @property
    def _type(self) -> type:
        return next((kind for kind in (int, float) if kind in self._kinds), str)

    @property
    def _literal(self) -> tuple[str, ...] | None:
        (kind, *_) = self._kinds
        return typing.get_args(kind) if typing.get_origin(kind) is Literal else None


def _field(leaf: str) -> FieldInfo:
    """Return the field of the settings tree at a dotted key."""
    model: type[BaseModel] = Settings
    *sections, key = leaf.split(".")
    for section in sections:
        model = typing.cast("type[BaseModel]", model_of_field(model, section))
    return model.model_fields[key]


def _idle(name: str, takes_value: bool = True) -> Flag:
    return Flag(Heading.OLD, (name,), takes_value=takes_value, old_default="never read", state="idle")


FLAGS: tuple[Flag, ...] = (
    Flag(
        Heading.MODEL,
        ("--model-path",),
        "a folder saved by save_pretrained, a hub id, or a .safetensors or .gguf file",
        leaf="model.path",
        metavar="PATH_OR_ID",
        required=True,
        old_default="required",
    ),
    Flag(
        Heading.MODEL,
        ("--model-base",),
        "folder or hub id that completes a transformer alone, or a file",
        leaf="model.base",
        metavar="PATH_OR_ID",
    ),
    Flag(
        Heading.MODEL,
        ("--component",),
        "a folder, hub id or file in place of a component's own, such as vae=./my-vae",
        metavar="NAME=PATH_OR_ID",
        many=True,
    ),
    Flag(
        Heading.MODEL,
        ("--schedulers",),
        "known names of schedulers that requests may choose beside the model's own, such as euler unipc dpmpp_2m",
        leaf="model.schedulers",
        metavar="NAME",
        many=True,
    ),
    Flag(
        Heading.MODEL,
        ("--config",),
        "settings to start from: a name that `cache-dit-serving models` lists, or a YAML file",
        metavar="NAME_OR_PATH",
    ),
    Flag(
        Heading.MODEL,
        ("--device",),
        "cuda, cuda:1, cpu ...; left out: the accelerator if there is one",
        leaf="model.device",
        old_default="the accelerator",
        differs="`cuda:1` works",
    ),
    Flag(Heading.MODEL, ("--dtype",), "dtype of the weights", leaf="model.dtype", old_default="bfloat16"),
    Flag(
        Heading.MODEL,
        ("--generator-device", "--gen-device"),
        "device that draws noise: cpu, so that a seed gives the same noise on every device, or the model's device",
        leaf="model.generator_device",
        metavar="DEVICE",
        old_default="the accelerator",
        differs="`cuda` draws noise where 1.3.5 did; each picture of several still has a seed of its own",
    ),
    Flag(
        Heading.MODEL,
        ("--attn",),
        "attention backend: native, flash, _native_cudnn, sage ...",
        leaf="attention_backend",
        metavar="BACKEND",
        old_default="none",
        differs="a backend that cannot run here fails the start with the list of those that can",
    ),
    Flag(
        Heading.CACHE,
        ("--cache",),
        "enable DBCache",
        takes_value=False,
        old_default="off",
    ),
    Flag(
        Heading.CACHE,
        ("--Fn", "--Fn-compute-blocks"),
        "first n blocks, always computed",
        leaf="cache.Fn_compute_blocks",
        old_default="1",
    ),
    Flag(
        Heading.CACHE,
        ("--Bn", "--Bn-compute-blocks"),
        "last n blocks, always computed",
        leaf="cache.Bn_compute_blocks",
        old_default="0",
    ),
    Flag(
        Heading.CACHE,
        ("--rdt", "--residual-diff-threshold"),
        "residual difference threshold",
        leaf="cache.residual_diff_threshold",
        old_default="0.24",
    ),
    Flag(
        Heading.CACHE,
        ("--max-warmup-steps", "--w", "--ws"),
        "first steps, always computed",
        leaf="cache.max_warmup_steps",
        old_default="8",
    ),
    Flag(
        Heading.CACHE,
        ("--warmup-interval", "--wi"),
        "compute every n-th step of the warm-up only",
        leaf="cache.warmup_interval",
        old_default="1",
    ),
    Flag(
        Heading.CACHE,
        ("--max-cached-steps", "--mc"),
        "reuse at most this often; -1: no limit",
        leaf="cache.max_cached_steps",
        old_default="-1",
    ),
    Flag(
        Heading.CACHE,
        ("--max-continuous-cached-steps", "--mcc"),
        "reuse at most this often in a row; -1: no limit",
        leaf="cache.max_continuous_cached_steps",
        old_default="3",
    ),
    Flag(
        Heading.CACHE,
        ("--taylorseer",),
        "extrapolate what is reused by a Taylor series",
        leaf="cache.enable_taylorseer",
        old_default="off",
        differs="works; 1.3.5 never read it",
    ),
    Flag(
        Heading.CACHE,
        ("--taylorseer-order", "-order"),
        "order of the Taylor series",
        leaf="cache.taylorseer_order",
        old_default="1",
        differs="without --taylorseer refused, since it has no effect",
    ),
    Flag(
        Heading.CACHE,
        ("--steps-mask",),
        "use a step mask, which fixes the steps to compute: medium, unless --mask-policy names another",
        leaf="cache.steps_computation_mask",
        const="medium",
        old_default="off",
        differs="works on every model; 1.3.5 read it for Z-Image-Turbo alone",
    ),
    Flag(
        Heading.CACHE,
        ("--mask-policy", "--scm"),
        "step mask by name; slow reuses least",
        leaf="cache.steps_computation_mask",
        choices=tuple(POLICIES),
        old_default="none",
        differs="as `--steps-mask`",
    ),
    Flag(
        Heading.REQUESTS,
        ("--num-inference-steps", "--steps"),
        "denoising steps; left out: the model's own number",
        leaf="defaults.num_inference_steps",
        old_default="none",
        differs="1.3.5 read it for some models' cache settings alone",
    ),
    Flag(Heading.SERVER, ("--host",), "address to listen on", default="0.0.0.0", old_default="0.0.0.0"),
    Flag(Heading.SERVER, ("--port",), "port to listen on", default=8000, old_default="8000"),
    Flag(
        Heading.SERVER,
        ("--workers",),
        "worker processes, each with the model",
        leaf="server.workers",
        old_default="1",
        differs="2 and more work, each on a GPU of its own; 1.3.5 ended after loading",
    ),
    Flag(
        Heading.PARALLELISM,
        ("--parallel-type", "--parallel"),
        "way in which --parallel-size GPUs share a forward pass",
        choices=("ulysses", "ring", "tp"),
        old_default="none",
        differs="the server starts the processes itself; 1.3.5 wanted torchrun",
    ),
    Flag(
        Heading.PARALLELISM,
        ("--parallel-size",),
        "number of GPUs (processes on a CPU) that share a forward pass; left out: all GPUs, and 2 on a CPU",
        kind=int,
    ),
    Flag(
        Heading.PARALLELISM,
        ("--cfg-parallel",),
        "number of groups of GPUs that share guidance's forward passes, 2 for most models; each is of --parallel-size "
        "GPUs, or of one without --parallel-type",
        leaf="parallelism.guidance",
    ),
    Flag(
        Heading.PARALLELISM,
        ("--nodes", "--nnodes"),
        "number of machines; the others run `cache-dit-serving join`",
        leaf="parallelism.nodes",
    ),
    Flag(
        Heading.PARALLELISM,
        ("--rendezvous", "--rdzv-endpoint"),
        "host:port of this machine, where the others join it",
        leaf="parallelism.rendezvous",
    ),
    Flag(
        Heading.PARALLELISM,
        ("--ulysses-anything", "--uaa"),
        "Ulysses for sequences and heads of any number",
        leaf="parallelism.ulysses_anything",
        old_default="off",
    ),
    Flag(
        Heading.PARALLELISM,
        ("--ulysses-async", "--ulysses-async-qkv-proj", "--uaqkv"),
        "Ulysses whose exchange overlaps the projections",
        leaf="parallelism.ulysses_async",
        old_default="off",
    ),
    Flag(
        Heading.PARALLELISM,
        ("--ulysses-float8", "--ufp8"),
        "Ulysses that exchanges at 8 bits",
        leaf="parallelism.ulysses_float8",
        old_default="off",
    ),
    Flag(
        Heading.PARALLELISM,
        ("--parallel-vae",),
        "spread the VAE too",
        takes_value=False,
        old_default="off",
    ),
    Flag(
        Heading.PARALLELISM,
        ("--parallel-text-encoder", "--parallel-text"),
        "spread the text encoder too",
        takes_value=False,
        old_default="off",
    ),
    Flag(
        Heading.PARALLELISM,
        ("--disable-compute-comm-overlap", "--dcco"),
        "do not have compiled blocks overlap the exchange between GPUs",
        leaf="parallelism.compute_comm_overlap",
        const="false",
        old_default="off",
    ),
    Flag(
        Heading.QUANTISATION,
        ("--quantize", "-q"),
        "quantise the transformers to float8_weight_only, unless --quantize-type names another type",
        leaf="quantize.quant_type",
        const="float8_weight_only",
        old_default="off",
        differs="1.3.5 did nothing without `--quantize-type`",
    ),
    Flag(
        Heading.QUANTISATION,
        ("--quantize-type", "--quant-type"),
        "float8, float8_wo, int8, int8_wo, int4_wo, per_block, nvfp4, svdq_int4_r32_dq, bnb_4bit ...",
        leaf="quantize.quant_type",
        metavar="TYPE",
        old_default="none",
        differs="`bitsandbytes_4bit` needs no further file; what the device cannot do fails the start with what it can",
    ),
    Flag(
        Heading.QUANTISATION,
        ("--pipeline-quant-config-path",),
        "Python file whose get_pipeline_quant_config() returns diffusers' PipelineQuantizationConfig",
        leaf="quantize.pipeline_config_path",
        metavar="FILE",
        old_default="none",
    ),
    Flag(
        Heading.LORA,
        ("--lora-path",),
        "a LoRA: a .safetensors file, a folder with one, or a hub id; it is fused into the weights",
        metavar="PATH",
        old_default="none",
        differs="safetensors alone; a LoRA that does not fit as a whole is an error",
    ),
    Flag(
        Heading.LORA,
        ("--lora-name",),
        "file of the LoRA in that folder or of that hub id",
        metavar="FILE",
        old_default="none",
    ),
    Flag(
        Heading.LORA,
        ("--disable-fuse-lora",),
        "keep the LoRA beside the weights: requests may leave it out, or give it another scale",
        takes_value=False,
        old_default="off",
    ),
    Flag(
        Heading.LORA,
        ("--fuse-lora",),
        "fuse the LoRA into the weights, as without --disable-fuse-lora",
        takes_value=False,
    ),
    Flag(
        Heading.MEMORY,
        ("--enable-cpu-offload",),
        "keep components in the computer's memory, and have one at a time on the GPU",
        leaf="model.offload",
        const="model",
        old_default="off",
        differs="without a GPU refused; beside `--device-map` it adds nothing, and the start says so",
    ),
    Flag(
        Heading.MEMORY,
        ("--device-map",),
        "spread whole components over several GPUs",
        leaf="model.device_map",
        old_default="none",
        differs="without a GPU refused",
    ),
    Flag(
        Heading.MEMORY,
        ("--compile",),
        "torch.compile the transformers' repeated blocks",
        leaf="compile.mode",
        const="default",
        old_default="off",
        differs="compiles blocks, before ready; 1.3.5 compiled the whole transformer, at the first request",
    ),
    Flag(
        Heading.MEMORY,
        ("--compile-repeated-blocks",),
        "same as --compile",
        leaf="compile.mode",
        const="default",
        old_default="never read",
        differs="works",
    ),
    Flag(
        Heading.MEMORY,
        ("--max-autotune",),
        "compile, and try several kernels for each product: a longer start, faster steps",
        leaf="compile.mode",
        const="max-autotune",
        old_default="never read",
        differs="works, also without `--compile`",
    ),
    Flag(
        Heading.MEMORY,
        ("--track-memory",),
        "no further effect: answers and metrics always hold the peak of memory",
        takes_value=False,
        old_default="never read",
        differs="always on",
    ),
    Flag(
        Heading.MEMORY,
        ("--profile",),
        "write a trace of every output, up to profiling.max_traces",
        leaf="profiling.requests",
        const="all",
        old_default="off",
        differs="each step is a range that says whether it was cached",
    ),
    Flag(
        Heading.MEMORY,
        ("--profile-name",),
        "prefix of the traces' file names",
        leaf="profiling.name",
        old_default="none",
    ),
    Flag(
        Heading.MEMORY,
        ("--profile-dir",),
        "folder of the traces",
        leaf="profiling.folder",
        metavar="FOLDER",
        old_default="none",
    ),
    Flag(
        Heading.MEMORY,
        ("--profile-activities",),
        "activities to trace: cpu, gpu, or both",
        leaf="profiling.activities",
        metavar="ACTIVITY",
        many=True,
        old_default="CPU GPU",
    ),
    Flag(
        Heading.MEMORY,
        ("--profile-with-stack",),
        "record the Python source of each operation in traces",
        leaf="profiling.with_stack",
        old_default="off",
    ),
    Flag(
        Heading.MEMORY,
        ("--profile-record-shapes",),
        "record the shapes of each operation's tensors in traces",
        leaf="profiling.record_shapes",
        old_default="off",
    ),
    *(
        _idle(f"--{name}")
        for name in ("repeat", "height", "width", "prompt", "negative-prompt", "image-path", "warmup")
    ),
    _idle("--perf", takes_value=False),
)

COMMAND = "cache-dit-serving serve"
DESCRIPTION = """\
Serve a diffusion transformer with BentoML, accelerated by cache-dit. `cache-dit-serve` is the same command.

  the small model in the bundle, no GPU needed; then http://localhost:3000/docs in a browser:
    cache-dit-serving serve --config embedded --port 3000
  a model with the settings of its card (`cache-dit-serving models` lists the names):
    cache-dit-serving serve --config qwen-image
  a model by its hub id or folder, with the cache of its configuration, or with another one:
    cache-dit-serving serve --model-path Qwen/Qwen-Image --cache
    cache-dit-serving serve --model-path Qwen/Qwen-Image --cache --rdt 0.15 --Fn 8

Every setting of docs/configuration.md has a key in the --config file and a variable:
CACHE_DIT_SERVING__LIMITS__MAX_QUEUE=8 sets limits.max_queue. Flags win over variables, variables over the file.
`cache-dit-serving config` with the same flags prints the result and where each value came from.
"""


def parser(prog: str = COMMAND, description: str = DESCRIPTION) -> CommandLine:
    """Return the parser of :data:`FLAGS`."""
    result = CommandLine(prog, "[flags]", description)
    for group, flags in grouped():
        title, description = group.value
        if group is Heading.OLD:
            description += ": " + " ".join(flag.names[0] for flag in flags)
        section = result.add_argument_group(title.lower(), description or None)
        for flag in flags:
            flag.add_to(section)
    return result


def grouped() -> Iterator[tuple[Heading, list[Flag]]]:
    """Yield the flags under their headings."""
    for group in Heading:
        yield group, [flag for flag in FLAGS if flag.group is group]


def idle_flags(parsed: argparse.Namespace) -> list[str]:
    """Return the given flags that have no effect."""
    return [flag.names[0] for flag in FLAGS if flag.state == "idle" and getattr(parsed, flag.dest) is not None]


def settings_given(parsed: argparse.Namespace) -> dict[str, object]:
    """Return the values that the given flags fill in, by dotted key of the setting."""
    given: dict[str, object] = {}
    for flag in FLAGS:
        # A value of a later flag in the table overrides an earlier const: `--mask-policy` after `--steps-mask`.
        if flag.leaf and flag.state == "works" and (value := getattr(parsed, flag.dest)) is not None:
            given[flag.leaf] = value if flag.const is None else flag.const
    return given


def flag_of(leaf: str, parsed: argparse.Namespace) -> str:
    """Return the flag that filled the setting at a dotted key, or the main flag of its group (`--lora-path` ...)."""
    given = [flag for flag in FLAGS if flag.leaf == leaf and getattr(parsed, flag.dest) is not None]
    if leaf == "model.components":
        return "--component"
    by_group = "--lora-path" if leaf.startswith("model.loras") else "--parallel-type"
    return given[-1].names[0] if given else by_group
