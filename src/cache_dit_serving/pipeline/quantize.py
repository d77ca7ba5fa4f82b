"""Quantisation of weights during or after loading: checks of the device, the quantisation, and its report.

cache-dit quantises linear layers with torchao, and with its own kernels for SVDQuant. diffusers loads weights with
bitsandbytes, or by the configuration in an operator's Python file.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import runpy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import cache_dit
import torch
from diffusers import PipelineQuantizationConfig
from diffusers.quantizers.auto import AUTO_QUANTIZER_MAPPING as OF_DIFFUSERS
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as OF_TRANSFORMERS

from cache_dit_serving.config.acceleration import BITSANDBYTES, QUANT_TYPES, SVDQ, ComponentQuantization
from cache_dit_serving.errors import DETAILS, LoadError
from cache_dit_serving.pipeline import svdquant
from cache_dit_serving.pipeline.freed_memory import free_without_sleeping
from cache_dit_serving.pipeline.memory import needing_memory
from cache_dit_serving.pipeline.networks import networks_of
from cache_dit_serving.pipeline.protocol import QuantizedComponent

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from cache_dit_serving.config.acceleration import QuantizeSettings

logger = logging.getLogger(__name__)

DENOISERS = ("transformer", "transformer_2")
BITS_AND_BYTES = "bitsandbytes"
"""Method in configurations; diffusers and transformers list it with the number of bits in its name."""
REMEDY = "pip install -r requirements-quantization.txt"


@dataclass(frozen=True)
class Need:
    """Requirements of a quantisation type."""

    capability: tuple[int, int] = (0, 0)
    """Least compute capability of a CUDA device."""
    package: str = "torchao"
    cpu: bool = False
    """True if the type runs on a CPU too."""


NEEDS = {
    "float8_per_row": Need((8, 9)),
    "float8_per_tensor": Need((8, 9)),
    "float8_per_block": Need((8, 9)),
    "float8_weight_only": Need((8, 9), cpu=True),
    "int8_per_row": Need(cpu=True),
    "int8_per_tensor": Need(cpu=True),
    "int8_weight_only": Need(cpu=True),
    "int4_weight_only": Need((8, 0), package="mslk"),
    "nvfp4": Need((10, 0)),
    "nvfp4_weight_only": Need((10, 0)),
    BITSANDBYTES: Need(package="bitsandbytes"),
}
"""Requirements by type, from the checks of torchao 0.18 and cache-dit 1.5.3. `svdquant.py` has those of SVDQuant."""
OFFERED = (*QUANT_TYPES, "svdq_int4_r32_dq", "svdq_nvfp4_r32_dq")
"""Types listed to operators; of SVDQuant's many ranks, only 32."""


def refusal(quant_type: str, device: torch.device) -> str | None:
    """Return the reason that a type cannot run on a device, as a phrase that follows its name; None if it can."""
    if svdq := SVDQ.fullmatch(quant_type):
        why = svdquant.refusal_on(svdq[1], device)
        if why in (None, svdquant.NO_KERNELS) and not svdq[2]:
            return f"needs a calibration, which this server does not run; {quant_type}_dq does without"
        return why
    need = NEEDS[quant_type]
    if device.type != "cuda":
        if not need.cpu:
            return f"does not run on {device.type}"
    elif (capability := torch.cuda.get_device_capability(device)) < need.capability:
        wanted, there = (".".join(map(str, each)) for each in (need.capability, capability))
        return f"needs a GPU of compute capability {wanted}; this one has {there}"
    if importlib.util.find_spec(need.package) is None:
        return f"needs the package {need.package}, which is not installed: {REMEDY}"
    return None


def usable_types(device: torch.device) -> list[str]:
    """Return the listed types that can run on a device with the installed packages."""
    return [name for name in OFFERED if not refusal(name, device)]


def check(settings: QuantizeSettings | None, device: torch.device, dtype: str) -> None:
    """Refuse a quantisation type that the device cannot run, before any weights are loaded.

    Raises:
        LoadError: the message lists the types that can run, or the dtype that the type needs.
    """
    if settings is None:
        return
    types = [each.quant_type for each in settings.by_component(DENOISERS).values()]
    for quant_type in (*types, *(settings.precision_plan or {}).values()):
        if why := refusal(quant_type, device):
            usable = usable_types(device)
            raise LoadError(f"quantize: {quant_type} {why}; usable here: {', '.join(usable) or 'none'}")
        if quant_type == "float8_per_row" and dtype != "bfloat16":
            raise LoadError(f"quantize: float8_per_row wants model.dtype bfloat16, not {dtype}")


def check_saved(folder: Path) -> None:
    """Refuse a model whose weights were quantised by a library that diffusers and transformers do not load.

    Raises:
        LoadError: the message names the library.
    """
    for file in sorted(folder.glob("*/config.json")):
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
            method = config.get("quantization_config", {}).get("quant_method")
        except (OSError, ValueError, AttributeError, RecursionError):
            continue  # loading reports the error
        library, known = ("diffusers", OF_DIFFUSERS) if "_class_name" in config else ("transformers", OF_TRANSFORMERS)
        if method is not None and method not in (*known, BITS_AND_BYTES):
            raise LoadError(
                f"{file.parent.name} is quantised by {method}, which is not supported: {library} does not load it. "
                f"Take one that was not quantised, or replace it by model.components.{file.parent.name}"
            )


def as_loaded(settings: QuantizeSettings | None, components: Sequence[str]) -> PipelineQuantizationConfig | None:
    """Return diffusers' configuration for quantisation during loading; None if nothing is quantised then.

    Args:
        components: names of the model's components, from its index.

    Raises:
        LoadError: the operator's file fails or returns another type, or contradicts `bitsandbytes_4bit`.
    """
    if settings is None:
        return None
    wanted = settings.by_component(tuple(name for name in DENOISERS if name in components))
    names = [name for name, each in wanted.items() if each.quant_type == BITSANDBYTES]
    if settings.pipeline_config_path is None:
        if not names:
            return None
        nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
        return PipelineQuantizationConfig(quant_backend=BITSANDBYTES, quant_kwargs=nf4, components_to_quantize=names)
    if names:
        raise LoadError(f"quantize: {BITSANDBYTES} and pipeline_config_path contradict each other; give one of them")
    try:
        made = runpy.run_path(str(settings.pipeline_config_path.expanduser()))["get_pipeline_quant_config"]()
    except Exception as error:
        logger.exception("the file of quantize.pipeline_config_path fails")
        why = "has no get_pipeline_quant_config()" if isinstance(error, KeyError) else f"fails ({type(error).__name__})"
        raise LoadError(f"quantize.pipeline_config_path: the file {why}{DETAILS}") from error
    if not isinstance(made, PipelineQuantizationConfig):
        raise LoadError("quantize.pipeline_config_path: get_pipeline_quant_config() returns another type")
    return made


def quantize(
    pipe: DiffusionPipeline, settings: QuantizeSettings | None, device: torch.device, progress: Callable[[str], None]
) -> tuple[QuantizedComponent, ...]:
    """Quantise the configured components that are not quantised during loading, one at a time on the device.

    Returns all quantised components, those that were loaded so included.

    Raises:
        LoadError: a component does not exist, is quantised already, does not fit, or has no layer to quantise.
    """
    there: Mapping[str, Any] = networks_of(pipe)
    loaded = {name: str(method) for name, each in there.items() if (method := quantized_as_loaded(each))}
    found = [
        QuantizedComponent(name, loaded[name], _layers(there[name]), None, bytes_of(there[name])) for name in loaded
    ]
    if settings is None:
        return tuple(found)
    for name, wanted in settings.by_component(tuple(name for name in DENOISERS if name in there)).items():
        if name not in there:
            raise LoadError(f"quantize.components_to_quantize: there is no {name}; there are: {', '.join(there)}")
        if wanted.quant_type == BITSANDBYTES:
            continue
        if name in loaded:
            raise LoadError(f"quantize: {name} is quantised already ({loaded[name]}); leave it out")
        progress(f"quantising {name} ({wanted.quant_type})")
        with needing_memory(f"{name} does not fit into the memory of {device} before it is quantised"):
            component = there[name].to(device)
        before = bytes_of(component)
        with _platform_of(device):
            _quantize(name, component, wanted, settings)
        layers = _layers(component)
        if not layers:
            raise LoadError(f"quantize: no layer of {name} can be quantised; see quantize.exclude_layers")
        found.append(QuantizedComponent(name, wanted.quant_type, layers, before, bytes_of(component)))
    return tuple(found)


def _quantize(name: str, component: torch.nn.Module, wanted: ComponentQuantization, settings: QuantizeSettings) -> None:
    exclude = settings.exclude_layers if wanted.exclude_layers is None else wanted.exclude_layers
    config = cache_dit.QuantizeConfig(
        quant_type=wanted.quant_type,
        exclude_layers=list(exclude),
        regional_quantize=settings.regional_quantize,
        precision_plan=settings.precision_plan,
    )
    free_without_sleeping()
    try:
        cache_dit.quantize(component, config)
    except (AssertionError, ImportError, NotImplementedError, RuntimeError, ValueError) as error:
        logger.exception("quantising %s failed", name)
        what = f"{name} cannot be quantised as {wanted.quant_type}"
        raise LoadError(f"quantize: {what}{DETAILS}") from error


def quantized_as_loaded(component: Any) -> str | None:
    """Return the library that quantised a component before or during loading, as diffusers and transformers record it.

    Of a checkpoint of cache-dit's SVDQuant, its type. None if none did.
    """
    if (quant_type := svdquant.quant_type_of(component)) is not None:
        return quant_type
    method = getattr(component, "quantization_method", None)
    return str(getattr(method, "value", method)) if method else None


def is_quantized(component: torch.nn.Module) -> bool:
    """Return whether a component has quantised weights."""
    return quantized_as_loaded(component) is not None or _layers(component) > 0


def bytes_of(component: torch.nn.Module) -> int:
    """Return the bytes of a component's weights and buffers."""
    return sum(_bytes(tensor) for each in (component.parameters(), component.buffers()) for tensor in each)


def _bytes(tensor: torch.Tensor) -> int:
    if not is_traceable_wrapper_subclass(tensor):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    parts = (getattr(tensor, name) for name in names)  # a DTensor's have its mesh of devices too
    return sum(_bytes(part) for part in parts if isinstance(part, torch.Tensor))


def _layers(component: torch.nn.Module) -> int:
    """Return the number of a component's quantised linear layers."""
    count = svdquant.layers_of(component)
    for layer in component.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(layer, torch.nn.Linear) and isinstance(weight, torch.Tensor):
            count += is_traceable_wrapper_subclass(weight) or not weight.is_floating_point()
    return count


@contextmanager
def _platform_of(device: torch.device) -> Iterator[None]:
    """Make cache-dit quantise on a CPU in the body, by a stand-in for its platform.

    cache-dit 1.5.3 quantises on CUDA only. torchao runs the types that :func:`refusal` accepts on a CPU too.
    """
    if device.type == "cuda":
        yield
        return
    module: Any = importlib.import_module("cache_dit.quantization.torchao.quantize_ao")
    before = module.current_platform
    module.current_platform = SimpleNamespace(
        device_type="cuda", is_accelerator_available=lambda: True, get_device_capability=lambda: (8, 9)
    )
    try:
        yield
    finally:
        module.current_platform = before
