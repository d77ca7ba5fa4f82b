"""Refusal of a pipeline some of whose tensors are in no file.

diffusers 0.42.1 leaves such a parameter on the meta device; transformers 5 draws it at random. Both only log it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from transformers import PreTrainedModel

from cache_dit_serving.errors import LoadError
from cache_dit_serving.model_folder.weights import counted
from cache_dit_serving.pipeline.networks import networks_of
from cache_dit_serving.pipeline.wrapped import Method, wrapped

UNUSED = ("lm_head.",)
"""Beginnings of the names of tensors that no pipeline uses, because it reads hidden states alone."""


MissingOf = Callable[[torch.nn.Module], list[str]]
"""Function that returns the names of a network's tensors that no file held, in order."""


@contextmanager
def noted_missing() -> Iterator[MissingOf]:
    """Note the tensors that networks loaded in the body lack. Yields the function that returns them."""
    drawn: dict[int, set[str]] = {}

    def noted(adjust: Method) -> Method:
        def note(model: PreTrainedModel, loading_info: Any) -> None:
            adjust(model, loading_info)
            drawn[id(model)] = set(loading_info.missing_keys)

        return note

    def missing_of(component: torch.nn.Module) -> list[str]:
        absent = drawn.get(id(component), set())
        if not _spread(component):
            absent = absent | {key for key, parameter in component.named_parameters() if parameter.is_meta}
        return sorted(key for key in absent if not key.startswith(UNUSED))

    with wrapped(PreTrainedModel, "_adjust_missing_and_unexpected_keys", noted):
        yield missing_of


def loaded_whole(load: Callable[[], DiffusionPipeline]) -> DiffusionPipeline:
    """Return a pipeline that `load` reads from files, after a check that the files held each parameter.

    Raises:
        LoadError: the message names the component, the number of missing tensors and the first of them.
    """
    with noted_missing() as missing_of:
        pipe = load()
    for name, component in networks_of(pipe).items():
        if missing := missing_of(component):
            raise LoadError(f"the files of {name} lack {counted(missing, 'tensor')} of its class; download it again")
    return pipe


def _spread(component: torch.nn.Module) -> bool:
    """Return whether accelerate's hooks hold the parameters elsewhere, and bring them to the device for each call."""
    return any(hasattr(module, "_hf_hook") for module in component.modules())
