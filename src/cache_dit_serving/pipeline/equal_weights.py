"""Weights of a network that another one may use too: compared bit by bit, taken over, and parted again.

Parameters are shared, buffers are not: some networks write to theirs while they draw.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from cache_dit_serving.pipeline.host_copy import plain_tensors

Weights = Mapping[str, torch.Tensor]
"""Parameters of a network by their names in its files, without those of LoRAs."""

OF_LORAS = ".lora_"
BASE_LAYER = ".base_layer."
"""Part of a layer's name below which PEFT puts the model's own layer."""
COMPARED = 2**26
"""Bytes that are compared at once."""
WORD = 8
"""Bytes of an int64."""
SAMPLED = 16
"""Bytes of each tensor that :func:`sample` takes."""


def file_name(name: str) -> str | None:
    """Return the name in files of a model's tensor; None for one of a LoRA."""
    return None if OF_LORAS in name else name.replace(BASE_LAYER, ".")


def weights_of(module: torch.nn.Module) -> Weights:
    """Return the weights that a network can share; none if it has any of another kind, such as GGML's."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if (known := file_name(name)) is None:
            continue
        wraps = is_traceable_wrapper_subclass(parameter) and not isinstance(parameter, DTensor)
        if not wraps and type(parameter) is not torch.nn.Parameter:
            return {}
        found[known] = parameter
    return found


def storages_of(weights: Weights) -> list[torch.UntypedStorage]:
    """Return the storages of weights that can be resized, each once."""
    plain = (each.untyped_storage() for tensor in weights.values() for each in plain_tensors(tensor))
    return list({each._cdata: each for each in plain if each.resizable()}.values())


def look_alike(one: Weights, other: Weights) -> bool:
    """Return whether two networks have weights of the same names, shapes and types."""
    return one.keys() == other.keys() and all(
        type(mine) is type(yours) and mine.shape == yours.shape and mine.dtype == yours.dtype
        for mine, yours in ((tensor, other[name]) for name, tensor in one.items())
    )


def are_equal(one: Weights, other: Weights) -> bool:
    """Return whether weights that look alike have the same bits. `other` may lie on another device."""
    return all(_equal(tensor, other[name]) for name, tensor in one.items())


def take_over(module: torch.nn.Module, weights: Weights) -> None:
    """Have a network use other tensors of equal contents; its own memory is given back."""
    taken: dict[int, torch.nn.Parameter] = {}
    for path, part in module.named_modules():
        for name, parameter in part._parameters.items():
            known = file_name(f"{path}.{name}" if path else name)
            if parameter is None or known is None:
                continue
            if id(parameter) not in taken:
                new = torch.nn.Parameter(weights[known].detach(), requires_grad=parameter.requires_grad)
                if not is_traceable_wrapper_subclass(parameter):  # a quantised one keeps its parts there
                    new.__dict__.update(parameter.__dict__)
                taken[id(parameter)] = new
            part._parameters[name] = taken[id(parameter)]


def part(weights: Weights) -> None:
    """Give weights memory of their own. They stay the same tensors, with the same contents.

    Raises:
        Exception: the device's memory ran out. All is as before.
    """
    own = {id(each): each.detach().clone() for each in weights.values()}
    for each in weights.values():
        each.data = own[id(each)]


def sample(weights: Weights) -> torch.Tensor:
    """Return a few bytes of each tensor, in host memory."""
    plain = (each for tensor in weights.values() for each in plain_tensors(tensor))
    return torch.cat([_bytes(each)[:SAMPLED] for each in plain]).cpu()


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    if is_traceable_wrapper_subclass(one):
        names, context = one.__tensor_flatten__()
        other_names, other_context = other.__tensor_flatten__()
        return (names, context) == (other_names, other_context) and all(
            _equal(getattr(one, name), getattr(other, name)) for name in names
        )
    if one.shape != other.shape or one.dtype != other.dtype or one.stride() != other.stride():
        return False
    pieces = zip(_bytes(one).split(COMPARED), _bytes(other).split(COMPARED), strict=True)
    return all(_same_bytes(mine, yours.to(mine.device)) for mine, yours in pieces)


def _same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    if all(each.numel() % WORD == each.storage_offset() % WORD == 0 for each in (one, other)):
        one, other = one.view(torch.int64), other.view(torch.int64)  # a fifth of the time on a CPU
    return torch.equal(one, other)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().flatten().view(torch.uint8)
