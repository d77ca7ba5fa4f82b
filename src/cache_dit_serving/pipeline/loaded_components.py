"""Report of a pipeline's networks: the file or folder that each was loaded from, its type and its size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from cache_dit_serving.config.sources import Sources
from cache_dit_serving.pipeline.networks import networks_of
from cache_dit_serving.pipeline.protocol import LoadedComponent
from cache_dit_serving.pipeline.quantize import bytes_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

FOLDER = "folder"


def loaded_components(
    pipe: DiffusionPipeline, sources: Sources, public_name: Callable[[str], str], weights: Mapping[str, str]
) -> tuple[LoadedComponent, ...]:
    """Return the networks of a pipeline with the places that their weights came from.

    Args:
        public_name: function that returns a path's name for callers.
        weights: name of the weights that other models can use, by component.
    """
    found = []
    for name, component in networks_of(pipe).items():
        source = sources.components.get(name)
        file = source.file if source else sources.whole
        if file is sources.whole and file is not None and not file.holds(name):
            file = None
        place = source.name if source else file.name if file else public_name(sources.location)
        kind = file.format if file else FOLDER
        size = bytes_of(component)
        found.append(LoadedComponent(name, place, kind, _dtype_of(component), size, weights.get(name)))
    return tuple(found)


def _dtype_of(component: torch.nn.Module) -> str:
    """Return the type with the most bytes of a component's weights: torch's name, or GGML's."""
    sizes = Counter[str]()
    for parameter in component.parameters():
        ggml = getattr(parameter, "quant_type", None)
        sizes[ggml.name if ggml is not None else str(parameter.dtype).removeprefix("torch.")] += parameter.nbytes
    return sizes.most_common(1)[0][0] if sizes else "none"
