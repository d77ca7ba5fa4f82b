"""Bytes of weights that the files of a model tell before it is loaded."""

from __future__ import annotations

from typing import Literal

import pytest

from cache_dit_serving.config.settings import ModelSettings
from cache_dit_serving.model_folder.size import expected_bytes
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from tests.support.in_process import EMBEDDED, load, unwarmed


@pytest.mark.parametrize(("dtype", "share"), [("float32", 1.0), ("bfloat16", 0.5)])
def test_the_headers_tell_what_the_tensors_have_in_memory(dtype: Literal["float32", "bfloat16"], share: float) -> None:
    model = EMBEDDED.model.model_copy(update={"path": str(EMBEDDED_FOLDER), "dtype": dtype})
    loaded = load(unwarmed(EMBEDDED))
    measured = sum(each.bytes for each in loaded.runner.facts.components)
    assert expected_bytes(model) == pytest.approx(measured * share, rel=0.01)


@pytest.mark.parametrize("place", ["vae", "vae/diffusion_pytorch_model.safetensors"])
def test_a_component_from_a_place_of_its_own_counts_instead_of_the_folders(place: str) -> None:
    whole = ModelSettings(path=str(EMBEDDED_FOLDER), dtype="float32")
    other = whole.model_copy(update={"components": {"vae": str(EMBEDDED_FOLDER / place)}})
    assert expected_bytes(other) == expected_bytes(whole) > 0


@pytest.mark.parametrize("path", ["nobody/has-this", "/does/not/exist", "/etc"])
def test_what_is_not_there_is_not_known(path: str) -> None:
    assert expected_bytes(ModelSettings(path=path)) == 0
