"""Random weights in place of a model's own, to measure time and memory before the real weights are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.pipelines.pipeline_loading_utils import simple_get_class_obj
from transformers import PreTrainedModel

from cache_dit_serving.config.settings import ModelSettings
from cache_dit_serving.errors import LoadError

SEED = 0


def random_pipeline(
    cls: type[DiffusionPipeline],
    location: str,
    model: ModelSettings,
    device: torch.device,
    progress: Callable[[str], None],
) -> DiffusionPipeline:
    """Return the pipeline that `from_pretrained` makes, with random weights. No file of weights is read.

    The weights are equal at each call on a device of one kind. Networks lie on the device.

    Args:
        cls: class of the pipeline; DiffusionPipeline stands for the class that the model names.
        location: folder with model_index.json and each component's configuration, or a hub id.

    Raises:
        LoadError: a component is of a class, or saved with a quantisation, that cannot have random weights.
    """
    index = DiffusionPipeline.load_config(location, revision=model.revision)
    if cls is DiffusionPipeline:
        cls = getattr(diffusers, index["_class_name"])
    parts: dict[str, Any] = {}
    with torch.random.fork_rng([device] if device.type != "cpu" else [], device_type=device.type):
        for name, entry in index.items():
            if name.startswith("_"):
                continue
            component = _class_of(entry)
            if component is None:
                parts[name] = None if isinstance(entry, list) else entry
            elif issubclass(component, torch.nn.Module):
                progress(f"making random weights for {name}")
                torch.manual_seed(SEED)
                with _new_tensors(getattr(torch, model.dtype), device):
                    parts[name] = _network(component, location, name, model.revision).eval().requires_grad_(False)
                _keep_in_float32(parts[name])
            else:
                parts[name] = component.from_pretrained(location, subfolder=name, revision=model.revision)
    return cls(**parts)


def _class_of(entry: Any) -> Any:
    """Return a component's class from its entry in model_index.json; None for an absent component or another entry."""
    return simple_get_class_obj(*entry) if isinstance(entry, list) and entry[0] is not None else None


def _network(cls: Any, location: str, name: str, revision: str | None) -> torch.nn.Module:
    if issubclass(cls, PreTrainedModel):
        config: Any = cls.config_class.from_pretrained(location, subfolder=name, revision=revision)
        quantized = getattr(config, "quantization_config", None)
    elif issubclass(cls, ModelMixin):
        config = cls.load_config(location, subfolder=name, revision=revision)
        quantized = config.get("quantization_config")
    else:
        raise LoadError(f"model.weights: a {cls.__name__} cannot be made at random; leave it out")
    if quantized:
        raise LoadError(f"model.weights: {name} is saved with quantised weights, for which there are no random ones")
    network: torch.nn.Module = cls(config) if issubclass(cls, PreTrainedModel) else cls.from_config(config)
    return network


@contextmanager
def _new_tensors(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def _keep_in_float32(network: torch.nn.Module) -> None:
    """Convert the modules that the network's class names to float32, as diffusers' `from_pretrained` does."""
    if not isinstance(network, ModelMixin):
        return
    kept = network._keep_in_fp32_modules or ()
    for name, parameter in network.named_parameters():
        if set(name.split(".")) & set(kept):
            parameter.data = parameter.data.float()
