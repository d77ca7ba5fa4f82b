"""The launcher's flags: one table gives the parser, the settings that they fill, their help and docs/flags.md."""

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
from cache_dit_serving.command_line import CommandLine
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.config.variables import variable_of
from cache_dit_serving.findings import model_of_field


class Group(Enum):
    """The headings of `--help` and of docs/flags.md, each with what holds for all its flags."""

    MODEL = ("Model", "")
    CACHE = ("Cache", "settings of DBCache; without --cache, or a cache in the config, they are refused")
    REQUESTS = ("Requests", "what a request gets that leaves the field out")
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
        leaf: dotted key of the setting that it fills; None: it is the launcher's own.
        help: left out where the flag is one of cache_dit.serve that does nothing here.
        const: what a flag without a value fills its leaf with, where that is not true.
        default: of a flag of the launcher's own; others have their setting's.
        many: whether it takes several values.
        kind: of the values of a flag of the launcher's own without a default.
        required: whether the launcher asks for it, or for --config, although its setting has a default.
        old_default: of cache_dit.serve as last released (cache-dit 1.3.5); "" where it had no such flag.
        differs: how the flag differs from that server's, for docs/flags.md.
        state: whether it works, or is accepted without effect.
    """

    group: Group
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
        """The attribute of the parsed flags that holds its value."""
        return self.names[0].lstrip("-").replace("-", "_")

    @property
    def variable(self) -> str | None:
        """The environment variable that fills the same setting."""
        return variable_of(self.leaf) if self.leaf else None

    @property
    def default_text(self) -> str:
        """What holds without the flag, as docs and help say it."""
        if self.is_switch:
            return "off"
        value = _field(self.leaf).default if self.leaf and not self.required else self.default
        if isinstance(value, tuple):
            return " ".join(map(str, value))
        return "none" if value is None else str(value)

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        """Teach the parser the flag."""
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
        """The setting's type, without None."""
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
    """The field of the settings tree at a dotted key."""
    model: type[BaseModel] = Settings
    *sections, key = leaf.split(".")
    for section in sections:
        model = typing.cast("type[BaseModel]", model_of_field(model, section))
    return model.model_fields[key]


def _idle(name: str, takes_value: bool = True) -> Flag:
    return Flag(Group.OLD, (name,), takes_value=takes_value, old_default="never read", state="idle")


FLAGS: tuple[Flag, ...] = (
    Flag(
        Group.MODEL,
        ("--model-path",),
        "a folder saved by save_pretrained, or a hub id",
        leaf="model.path",
        metavar="PATH_OR_ID",
        required=True,
        old_default="required",
    ),
    Flag(
        Group.MODEL,
        ("--config",),
        "settings to start from: a name that `cache-dit-serving models` lists, or a YAML file",
        metavar="NAME_OR_PATH",
    ),
    Flag(
        Group.MODEL,
        ("--device",),
        "cuda, cuda:1, cpu ...; left out: the accelerator if there is one",
        leaf="model.device",
        old_default="the accelerator",
        differs="`cuda:1` works",
    ),
    Flag(Group.MODEL, ("--dtype",), "of the weights", leaf="model.dtype", old_default="bfloat16"),
    Flag(
        Group.MODEL,
        ("--generator-device", "--gen-device"),
        "where noise is drawn: cpu, so that a seed means the same noise on every device, or the model's device",
        leaf="model.generator_device",
        metavar="DEVICE",
        old_default="the accelerator",
        differs="`cuda` draws noise where 1.3.5 did; each picture of several still has a seed of its own",
    ),
    Flag(
        Group.MODEL,
        ("--attn",),
        "attention backend: native, flash, _native_cudnn, sage ...",
        leaf="attention_backend",
        metavar="BACKEND",
        old_default="none",
        differs="a backend that cannot run here fails the start with the list of those that can",
    ),
    Flag(
        Group.CACHE,
        ("--cache",),
        "enable DBCache",
        takes_value=False,
        old_default="off",
    ),
    Flag(
        Group.CACHE,
        ("--Fn", "--Fn-compute-blocks"),
        "first n blocks, always computed",
        leaf="cache.Fn_compute_blocks",
        old_default="1",
    ),
    Flag(
        Group.CACHE,
        ("--Bn", "--Bn-compute-blocks"),
        "last n blocks, always computed",
        leaf="cache.Bn_compute_blocks",
        old_default="0",
    ),
    Flag(
        Group.CACHE,
        ("--rdt", "--residual-diff-threshold"),
        "residual difference threshold",
        leaf="cache.residual_diff_threshold",
        old_default="0.24",
    ),
    Flag(
        Group.CACHE,
        ("--max-warmup-steps", "--w", "--ws"),
        "first steps, always computed",
        leaf="cache.max_warmup_steps",
        old_default="8",
    ),
    Flag(
        Group.CACHE,
        ("--warmup-interval", "--wi"),
        "compute every n-th step of the warm-up only",
        leaf="cache.warmup_interval",
        old_default="1",
    ),
    Flag(
        Group.CACHE,
        ("--max-cached-steps", "--mc"),
        "reuse at most this often; -1: no limit",
        leaf="cache.max_cached_steps",
        old_default="-1",
    ),
    Flag(
        Group.CACHE,
        ("--max-continuous-cached-steps", "--mcc"),
        "reuse at most this often in a row; -1: no limit",
        leaf="cache.max_continuous_cached_steps",
        old_default="3",
    ),
    Flag(
        Group.CACHE,
        ("--taylorseer",),
        "extrapolate what is reused by a Taylor series",
        leaf="cache.enable_taylorseer",
        old_default="off",
        differs="works; 1.3.5 never read it",
    ),
    Flag(
        Group.CACHE,
        ("--taylorseer-order", "-order"),
        "order of that series",
        leaf="cache.taylorseer_order",
        old_default="1",
        differs="without --taylorseer refused, since it has no effect",
    ),
    Flag(
        Group.CACHE,
        ("--steps-mask",),
        "step mask: which steps compute; medium, where --mask-policy names no other",
        leaf="cache.steps_computation_mask",
        const="medium",
        old_default="off",
        differs="works on every model; 1.3.5 read it for Z-Image-Turbo alone",
    ),
    Flag(
        Group.CACHE,
        ("--mask-policy", "--scm"),
        "step mask by name; slow reuses least",
        leaf="cache.steps_computation_mask",
        choices=tuple(POLICIES),
        old_default="none",
        differs="as `--steps-mask`",
    ),
    Flag(
        Group.REQUESTS,
        ("--num-inference-steps", "--steps"),
        "denoising steps; left out: the model's own number",
        leaf="defaults.num_inference_steps",
        old_default="none",
        differs="1.3.5 read it for some models' cache settings alone",
    ),
    Flag(Group.SERVER, ("--host",), "address to listen on", default="0.0.0.0", old_default="0.0.0.0"),
    Flag(Group.SERVER, ("--port",), "port to listen on", default=8000, old_default="8000"),
    Flag(
        Group.SERVER,
        ("--workers",),
        "worker processes, each with the model",
        leaf="server.workers",
        old_default="1",
        differs="2 and more work, each on a GPU of its own; 1.3.5 ended after loading",
    ),
    Flag(
        Group.PARALLELISM,
        ("--parallel-type", "--parallel"),
        "how --parallel-size GPUs share a forward pass",
        choices=("ulysses", "ring", "tp"),
        old_default="none",
        differs="the server starts the processes itself; 1.3.5 wanted torchrun",
    ),
    Flag(
        Group.PARALLELISM,
        ("--parallel-size",),
        "how many; left out: all GPUs, and 2 on a CPU",
        kind=int,
    ),
    Flag(
        Group.PARALLELISM,
        ("--nodes", "--nnodes"),
        "machines that they are on; the others run `cache-dit-serving join`",
        leaf="parallelism.nodes",
    ),
    Flag(
        Group.PARALLELISM,
        ("--rendezvous", "--rdzv-endpoint"),
        "host:port of this machine, where the others join it",
        leaf="parallelism.rendezvous",
    ),
    Flag(
        Group.PARALLELISM,
        ("--ulysses-anything", "--uaa"),
        "Ulysses for sequences and heads of any number",
        leaf="parallelism.ulysses_anything",
        old_default="off",
    ),
    Flag(
        Group.PARALLELISM,
        ("--ulysses-async", "--ulysses-async-qkv-proj", "--uaqkv"),
        "Ulysses whose exchange overlaps the projections",
        leaf="parallelism.ulysses_async",
        old_default="off",
    ),
    Flag(
        Group.PARALLELISM,
        ("--ulysses-float8", "--ufp8"),
        "Ulysses that exchanges at 8 bits",
        leaf="parallelism.ulysses_float8",
        old_default="off",
    ),
    Flag(
        Group.PARALLELISM,
        ("--parallel-vae",),
        "spread the VAE too",
        takes_value=False,
        old_default="off",
    ),
    Flag(
        Group.PARALLELISM,
        ("--parallel-text-encoder", "--parallel-text"),
        "spread the text encoder too",
        takes_value=False,
        old_default="off",
    ),
    Flag(
        Group.PARALLELISM,
        ("--disable-compute-comm-overlap", "--dcco"),
        "do not have compiled blocks overlap the exchange between GPUs",
        leaf="parallelism.compute_comm_overlap",
        const="false",
        old_default="off",
    ),
    Flag(
        Group.QUANTISATION,
        ("--quantize", "-q"),
        "quantise the transformers; float8_weight_only, where --quantize-type names no other",
        leaf="quantize.quant_type",
        const="float8_weight_only",
        old_default="off",
        differs="1.3.5 did nothing without `--quantize-type`",
    ),
    Flag(
        Group.QUANTISATION,
        ("--quantize-type", "--quant-type"),
        "float8, float8_wo, int8, int8_wo, int4_wo, per_block, nvfp4, svdq_int4_r32_dq, bnb_4bit ...",
        leaf="quantize.quant_type",
        metavar="TYPE",
        old_default="none",
        differs="`bitsandbytes_4bit` needs no further file; what the device cannot do fails the start with what it can",
    ),
    Flag(
        Group.QUANTISATION,
        ("--pipeline-quant-config-path",),
        "Python file whose get_pipeline_quant_config() returns diffusers' PipelineQuantizationConfig",
        leaf="quantize.pipeline_config_path",
        metavar="FILE",
        old_default="none",
    ),
    Flag(
        Group.LORA,
        ("--lora-path",),
        "a LoRA: a .safetensors file, a folder with one, or a hub id; it is fused into the weights",
        metavar="PATH",
        old_default="none",
        differs="safetensors alone; a LoRA that does not fit as a whole is an error",
    ),
    Flag(Group.LORA, ("--lora-name",), "its file in that folder or of that hub id", metavar="FILE", old_default="none"),
    Flag(
        Group.LORA,
        ("--disable-fuse-lora",),
        "keep it beside the weights: requests may leave it out, or give it another scale",
        takes_value=False,
        old_default="off",
    ),
    Flag(
        Group.LORA,
        ("--fuse-lora",),
        "what holds without --disable-fuse-lora",
        takes_value=False,
    ),
    Flag(
        Group.MEMORY,
        ("--enable-cpu-offload",),
        "keep components in the computer's memory, and have one at a time on the GPU",
        leaf="model.offload",
        const="model",
        old_default="off",
        differs="without a GPU refused; beside `--device-map` it adds nothing, and the start says so",
    ),
    Flag(
        Group.MEMORY,
        ("--device-map",),
        "spread whole components over several GPUs",
        leaf="model.device_map",
        old_default="none",
        differs="without a GPU refused",
    ),
    Flag(
        Group.MEMORY,
        ("--compile",),
        "torch.compile the transformers' repeated blocks",
        leaf="compile.mode",
        const="default",
        old_default="off",
        differs="compiles blocks, before ready; 1.3.5 compiled the whole transformer, at the first request",
    ),
    Flag(
        Group.MEMORY,
        ("--compile-repeated-blocks",),
        "the same",
        leaf="compile.mode",
        const="default",
        old_default="never read",
        differs="works",
    ),
    Flag(
        Group.MEMORY,
        ("--max-autotune",),
        "the same, and try several kernels for each product: a longer start, faster steps",
        leaf="compile.mode",
        const="max-autotune",
        old_default="never read",
        differs="works, also without `--compile`",
    ),
    Flag(
        Group.MEMORY,
        ("--track-memory",),
        "nothing more: answers and metrics have the peak of memory without it, too",
        takes_value=False,
        old_default="never read",
        differs="always on",
    ),
    Flag(
        Group.MEMORY,
        ("--profile",),
        "write a trace of every output, up to profiling.max_traces",
        leaf="profiling.requests",
        const="all",
        old_default="off",
        differs="each step is a range that says whether it was cached",
    ),
    Flag(Group.MEMORY, ("--profile-name",), "how their names begin", leaf="profiling.name", old_default="none"),
    Flag(
        Group.MEMORY,
        ("--profile-dir",),
        "folder that they go to",
        leaf="profiling.folder",
        metavar="FOLDER",
        old_default="none",
    ),
    Flag(
        Group.MEMORY,
        ("--profile-activities",),
        "what is traced: cpu, gpu, or both",
        leaf="profiling.activities",
        metavar="ACTIVITY",
        many=True,
        old_default="CPU GPU",
    ),
    Flag(
        Group.MEMORY,
        ("--profile-with-stack",),
        "with the Python source of each operation",
        leaf="profiling.with_stack",
        old_default="off",
    ),
    Flag(
        Group.MEMORY,
        ("--profile-record-shapes",),
        "with the shapes of each operation's tensors",
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
    """The command line that :data:`FLAGS` describes."""
    result = CommandLine(prog, "[flags]", description)
    for group, flags in grouped():
        title, description = group.value
        if group is Group.OLD:
            description += ": " + " ".join(flag.names[0] for flag in flags)
        section = result.add_argument_group(title.lower(), description or None)
        for flag in flags:
            flag.add_to(section)
    return result


def grouped() -> Iterator[tuple[Group, list[Flag]]]:
    """The flags under their headings."""
    for group in Group:
        yield group, [flag for flag in FLAGS if flag.group is group]


def idle_flags(parsed: argparse.Namespace) -> list[str]:
    """The flags given that have no effect."""
    return [flag.names[0] for flag in FLAGS if flag.state == "idle" and getattr(parsed, flag.dest) is not None]


def settings_given(parsed: argparse.Namespace) -> dict[str, object]:
    """Dotted key of a setting -> the value that the flags fill it with."""
    given: dict[str, object] = {}
    for flag in FLAGS:
        # A const is what holds where no later flag names a value: `--steps-mask` before `--mask-policy`.
        if flag.leaf and flag.state == "works" and (value := getattr(parsed, flag.dest)) is not None:
            given[flag.leaf] = value if flag.const is None else flag.const
    return given


def flag_of(leaf: str, parsed: argparse.Namespace) -> str:
    """The flag that filled the setting at a dotted key, or whose group did (`--lora-path`, `--parallel-type`)."""
    given = [flag for flag in FLAGS if flag.leaf == leaf and getattr(parsed, flag.dest) is not None]
    by_group = "--lora-path" if leaf.startswith("model.loras") else "--parallel-type"
    return given[-1].names[0] if given else by_group
