"""Families of checkpoints: as diffusers tells them, in its own naming too."""

from __future__ import annotations

import importlib
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.loaders.single_file_utils import fetch_diffusers_config

from cache_dit_serving.checkpoints.checkpoint_file import Kind, kind_of
from cache_dit_serving.checkpoints.families import MARKS, ORIGINAL, Mark, family_of
from cache_dit_serving.safetensors_header import TensorEntry
from tests.support.families import ENTRIES

UNMARKED = {"CosmosTransformer3DModel", "ErnieImageTransformer2DModel", "Krea2Transformer2DModel"}
"""Classes whose files have no mark in diffusers' naming: `model.base` tells their class."""
ALIKE = {"SkyReelsV2Transformer3DModel", "ChronoEditTransformer3DModel"}
"""Classes with Wan's names and shapes: their files look like Wan's."""
PLAIN = {
    "AuraFlowTransformer2DModel",
    "HiDreamImageTransformer2DModel",
    "HunyuanVideoTransformer3DModel",
    "SanaTransformer2DModel",
}
"""Classes that diffusers tells without ComfyUI's prefix alone."""
DENOISERS = {
    recipe["class"]: recipe
    for entry in ENTRIES.values()
    for part, recipe in entry["components"].items()
    if part == "transformer" and recipe and recipe.get("class") in SINGLE_FILE_LOADABLE_CLASSES
}


def _entries(cls: str, recipe: dict[str, Any]) -> dict[str, TensorEntry]:
    with torch.device("meta"):
        model = getattr(importlib.import_module(recipe.get("module", "diffusers")), cls).from_config(recipe["config"])
    return {name: TensorEntry("F32", tuple(each.shape), each.nbytes) for name, each in model.state_dict().items()}


@pytest.mark.parametrize("cls", sorted(DENOISERS.keys() - UNMARKED))
def test_a_transformer_in_diffusers_naming_is_told_by_its_names(cls: str) -> None:
    tensors = _entries(cls, DENOISERS[cls])
    family = family_of(tensors)
    assert kind_of(tensors) is Kind.DENOISER
    assert family is not None
    assert family.denoiser == ("WanTransformer3DModel" if cls in ALIKE else cls)


@pytest.mark.parametrize("cls", sorted(UNMARKED & DENOISERS.keys()))
def test_a_transformer_without_a_mark_is_of_no_family_rather_than_of_another(cls: str) -> None:
    tensors = _entries(cls, DENOISERS[cls])
    assert kind_of(tensors) is Kind.DENOISER
    assert family_of(tensors) is None


def _as_diffusers_tells(mark: Mark) -> str:
    """The hub id that diffusers takes for a file that has a mark, as ComfyUI names its tensors."""
    shapes = {name: [1, 1, 1] for name in mark.has}
    shapes["patch_embedding.weight"] = [5120, 36, 1]
    shapes["img_in.weight"] = [1, 64]
    if mark.side is not None:
        name, axis, length = mark.side
        shapes[name][axis] = length
    if mark.family.hub_id.endswith("3-medium-diffusers"):
        shapes |= {mark.has[0]: [9216], "pos_embed": [1, 36864, 1]}
    if mark.family.denoiser == "AuraFlowTransformer2DModel":
        shapes |= {name: [1] for name in ("double_layers.0.attn.w1q.weight", "t_embedder.mlp.0.weight")}
    prefix = "" if mark.family.denoiser in PLAIN else "model.diffusion_model."
    tensors = {prefix + name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return str(fetch_diffusers_config(tensors)["pretrained_model_name_or_path"])


@pytest.mark.parametrize("mark", ORIGINAL, ids=lambda mark: f"{mark.family.hub_id}, {mark.has[-1]}, {mark.side}")
def test_a_transformer_in_its_original_naming_is_of_the_family_that_diffusers_tells(mark: Mark) -> None:
    assert _as_diffusers_tells(mark) == mark.family.hub_id


def test_each_family_has_classes_that_diffusers_has_and_loads_from_one_file() -> None:
    for mark in MARKS:
        assert hasattr(diffusers, mark.family.pipeline), mark.family
        assert mark.family.denoiser in SINGLE_FILE_LOADABLE_CLASSES, mark.family
