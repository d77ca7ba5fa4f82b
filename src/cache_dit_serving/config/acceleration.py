"""Settings sections for speed and memory beside the cache: quantisation, compilation, parallelism and profiling."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from cache_dit_serving.section import Section

BITSANDBYTES = "bitsandbytes_4bit"
QUANT_TYPES = (
    "float8_per_row",
    "float8_per_tensor",
    "float8_per_block",
    "float8_weight_only",
    "int8_per_row",
    "int8_per_tensor",
    "int8_weight_only",
    "int4_weight_only",
    "nvfp4",
    "nvfp4_weight_only",
    BITSANDBYTES,
)
"""cache-dit 1.5.3's names, and bitsandbytes' NF4, which diffusers loads."""
SVDQ = re.compile(r"svdq_(int4|nvfp4)_r[1-9]\d*(_dq)?")
"""SVDQuant with a low-rank branch of a rank; `_dq`: without calibration."""
ALIASES = {
    "float8": "float8_per_row",
    "int8": "int8_per_row",
    "int4": "int4_weight_only",
    "bnb_4bit": BITSANDBYTES,
    "per_row": "float8_per_row",
    "per_tensor": "float8_per_tensor",
    "per_block": "float8_per_block",
    "float8_wo": "float8_weight_only",
    "int8_wo": "int8_weight_only",
    "int4_wo": "int4_weight_only",
    "nvfp4_wo": "nvfp4_weight_only",
}
"""Names of cache-dit's earlier versions and of its command line."""


def _quant_type(name: Any) -> Any:
    """Return the quantisation type for a name or alias, in lower case. A value that is not text is left to pydantic.

    Raises:
        ValueError: no type has this name.
    """
    if not isinstance(name, str):
        return name
    known = ALIASES.get(name.lower(), name.lower())
    if known not in QUANT_TYPES and not SVDQ.fullmatch(known):
        there = ", ".join((*QUANT_TYPES, "svdq_int4_r32_dq"))
        raise ValueError(f"{name} is no type of quantisation; there are: {there}; and short: {', '.join(ALIASES)}")
    return known


QuantType = Annotated[str, BeforeValidator(_quant_type)]


class ComponentQuantization(Section):
    """Quantisation of one component. A type's name alone stands for `{quant_type: NAME}`."""

    quant_type: QuantType = Field(description="Type for this component.")
    exclude_layers: tuple[str, ...] | None = Field(None, description="The setting of that name, for this component.")

    @model_validator(mode="before")
    @classmethod
    def _by_name_alone(cls, value: Any) -> Any:
        return {"quant_type": value} if isinstance(value, str) else value


class QuantizeSettings(Section):
    """Quantisation of weights. The keys are those of cache-dit's `quantize_config`."""

    quant_type: QuantType | None = Field(None, description="Quantisation type, by cache-dit's name.")
    components_to_quantize: tuple[str, ...] | dict[str, ComponentQuantization] | None = Field(
        None,
        description="Components of the pipeline, or each with a type of its own: `{transformer: float8_per_row, "
        "text_encoder: {quant_type: int8_weight_only, exclude_layers: []}}`. Left out: its transformers.",
    )
    exclude_layers: tuple[str, ...] = Field(
        ("embedder", "embed", "modulation", "mod"),
        description="Parts of names: linear layers whose name holds one keep their weights.",
    )
    regional_quantize: bool = Field(
        True, description="Only layers of the repeated blocks, where the component has some; false: all."
    )
    precision_plan: dict[str, QuantType] | None = Field(
        None, description="Part of a layer's name: a type of its own for such layers, `{attn.to_out: int8_per_tensor}`."
    )
    pipeline_config_path: Path | None = Field(
        None,
        description="Python file whose get_pipeline_quant_config() returns diffusers' PipelineQuantizationConfig. Its "
        "code runs in the server.",
    )

    @model_validator(mode="after")
    def _says_how(self) -> Self:
        by_component = isinstance(self.components_to_quantize, dict)
        if not self.quant_type and not by_component and self.pipeline_config_path is None:
            raise ValueError("quant_type is missing; name a type, such as float8_weight_only or int8_weight_only")
        if self.quant_type and by_component:
            raise ValueError("quant_type has no effect where components_to_quantize gives each component its own")
        if self.precision_plan and not self.regional_quantize:
            raise ValueError("precision_plan has no effect with regional_quantize false")
        return self

    def by_component(self, transformers: tuple[str, ...]) -> dict[str, ComponentQuantization]:
        """Return the components to quantise after loading, each with its settings.

        Args:
            transformers: names of the components to quantise if the settings name none.
        """
        if isinstance(self.components_to_quantize, dict):
            return self.components_to_quantize
        if self.quant_type is None:
            return {}
        names = transformers if self.components_to_quantize is None else self.components_to_quantize
        return {name: ComponentQuantization(quant_type=self.quant_type) for name in names}


class CompileSettings(Section):
    """torch.compile of the transformers' repeated blocks. `compile: {}` turns it on with the defaults."""

    mode: Literal["default", "max-autotune"] = Field(
        "default",
        description="max-autotune tries several kernels for each product and tunes each of the others: a longer start, "
        "faster steps.",
    )
    dynamic: bool = Field(
        True, description="One graph for every size; false: a size is compiled when it is first drawn, for itself."
    )
    sizes: tuple[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], ...] = Field(
        (),
        max_length=16,
        description="Widths and heights, px, to compile before ready: `[[1024, 1024], [1328, 800]]`. Left out: the "
        "default size.",
    )
    folder: Path | None = Field(
        None,
        description="Folder that keeps what is compiled, for a faster next start; left out: torch's own, a temporary "
        "one.",
    )


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


Activity = Annotated[Literal["cpu", "gpu"], BeforeValidator(_lower)]


class ProfilingSettings(Section):
    """Traces by torch's profiler: JSON that chrome://tracing and ui.perfetto.dev show."""

    requests: Literal["none", "asked", "all"] = Field(
        "none",
        description="Outputs that are traced: `none`, those of requests with `profile: true` (`asked`), or `all`.",
    )
    folder: Path = Field(
        Path("profiles"),
        description="Folder of the traces; relative to the server's working directory. The answer lists them in "
        "`profiles`.",
    )
    name: str = Field(
        "trace", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="Prefix of the traces' file names."
    )
    activities: tuple[Activity, ...] = Field(
        ("cpu", "gpu"), min_length=1, description="Devices whose operations are traced."
    )
    with_stack: bool = Field(False, description="Record the Python source of each operation; large.")
    record_shapes: bool = Field(False, description="Record the shapes of each operation's tensors.")
    max_traces: int = Field(
        100, ge=1, description="Greatest number of traces that a worker writes until its next start."
    )
    max_bytes: int = Field(
        2**30,
        ge=1,
        description="Bytes of traces after which a worker writes no more; one of 100 steps may have 100 MB.",
    )


class ParallelismSettings(Section):
    """One output on several GPUs. But for `guidance` the keys are those of cache-dit's `parallelism_config`."""

    guidance: int | None = Field(
        None,
        ge=2,
        description="Groups of GPUs that share a step's forward passes with and without the prompt; each has the whole "
        "model, or spreads it as the other keys say.",
    )
    ulysses_size: int | None = Field(
        None,
        ge=2,
        description="GPUs that share the sequence, by Ulysses attention; the number must divide the attention heads "
        "and the sequence of every requested size.",
    )
    ring_size: int | None = Field(
        None, ge=2, description="GPUs that share the sequence, by ring attention; not on a CPU."
    )
    tp_size: int | None = Field(
        None, ge=2, description="GPUs that share each layer's weights; the number must divide the attention heads."
    )
    ulysses_anything: bool = Field(False, description="Ulysses for sequences and heads of any number, with NCCL.")
    ulysses_async: bool = Field(False, description="Ulysses whose exchange overlaps the projections.")
    ulysses_float8: bool = Field(False, description="Ulysses that exchanges at 8 bits.")
    extra_parallel_modules: tuple[str, ...] = Field(
        (), description="Further components to spread: vae, text_encoder, controlnet."
    )
    vae_size: int | None = Field(
        None,
        ge=2,
        description="GPUs that share the tiles of a picture or clip as it is decoded; the number must divide that of "
        "all GPUs. Not together with vae in extra_parallel_modules, which takes the GPUs of a forward pass.",
    )
    compute_comm_overlap: bool = Field(
        True, description="Have blocks compiled by `compile` overlap the exchange between GPUs with their computation."
    )
    nodes: int = Field(1, ge=1, description="Machines that hold the GPUs, the same number on each.")
    rendezvous: str | None = Field(
        None,
        pattern=r"^\S+:\d{1,5}$",
        description="host:port of this node, where the others join it (`cache-dit-serving join`); for several nodes.",
    )
    step_timeout_s: float = Field(
        600, gt=0, description="Seconds after which a step that has not ended counts as hung, and the ranks start anew."
    )

    @model_validator(mode="after")
    def _says_how_many(self) -> Self:
        if self.world_size == 1:
            raise ValueError("name how many GPUs share what: guidance, ulysses_size, ring_size or tp_size")
        for key in ("ulysses_anything", "ulysses_async", "ulysses_float8"):
            if getattr(self, key) and not self.ulysses_size:
                raise ValueError(f"{key} has no effect without ulysses_size")
        if self.nodes > 1 and self.rendezvous is None:
            raise ValueError("several nodes need rendezvous: the host:port of this machine where the others join it")
        if self.rendezvous is not None and self.rendezvous.rpartition(":")[0] in ("0.0.0.0", "[::]"):
            raise ValueError("rendezvous is where the other nodes reach this one; name its address")
        if self.nodes == 1 and self.rendezvous is not None:
            raise ValueError("rendezvous has no effect with one node")
        if self.vae_size and self.world_size % self.vae_size:
            raise ValueError(f"vae_size {self.vae_size} does not divide the {self.world_size} GPUs in all")
        if self.vae_size and "vae" in self.extra_parallel_modules:
            raise ValueError("vae_size says how many GPUs decode; leave vae out of extra_parallel_modules")
        if self.world_size % self.nodes:
            raise ValueError(f"{self.world_size} GPUs in all cannot be on {self.nodes} nodes, as many on each")
        return self

    @property
    def pass_size(self) -> int:
        """Ranks that share one forward pass."""
        return (self.ulysses_size or 1) * (self.ring_size or 1) * (self.tp_size or 1)

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return (self.guidance or 1) * self.pass_size

    @property
    def ranks_per_node(self) -> int:
        """Ranks on each machine."""
        return self.world_size // self.nodes

    def described(self) -> dict[str, int | bool | list[str]]:
        """Return the number of ranks and the settings that differ from their defaults, except address and timeout."""
        given = self.model_dump(mode="json", exclude_defaults=True, exclude={"step_timeout_s", "rendezvous"})
        return {"world_size": self.world_size, **given}
