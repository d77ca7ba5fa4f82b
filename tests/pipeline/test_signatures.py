"""Signatures of attention processors: kept on their functions, and asked for as diffusers asks."""

from __future__ import annotations

import inspect
from types import FunctionType

from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

from cache_dit_serving.pipeline.networks import networks_of
from cache_dit_serving.pipeline.signatures import keep_signatures
from tests.support.in_process import draw, inside, known


def test_a_layer_gets_the_signature_of_its_processor_without_it_being_made_again() -> None:
    call = FluxAttnProcessor.__call__
    assert isinstance(call, FunctionType)
    vars(call).pop("__signature__", None)
    expected = inspect.signature(FluxAttnProcessor().__call__)
    pipe = inside(known())._part.pipe
    keep_signatures(pipe)
    kept = vars(call)["__signature__"]
    assert inspect.signature(FluxAttnProcessor().__call__) == expected
    keep_signatures(pipe)
    assert vars(call)["__signature__"] is kept


def test_pictures_are_as_without() -> None:
    loaded = known()
    with_it = draw(loaded).media.array
    kept = vars(FluxAttnProcessor.__call__).pop("__signature__")
    try:
        assert (draw(loaded).media.array == with_it).all()
    finally:
        vars(FluxAttnProcessor.__call__)["__signature__"] = kept


def test_every_processor_of_a_loaded_model_has_one() -> None:
    pipe = inside(known())._part.pipe
    processors = [
        module.processor
        for network in networks_of(pipe).values()
        for module in network.modules()
        if hasattr(module, "processor")
    ]
    assert processors
    assert all("__signature__" in vars(type(each).__call__) for each in processors)
