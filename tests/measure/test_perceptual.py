"""Measures by networks: a small CLIP of random weights, and messages for what is missing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from cache_dit_serving.measure.distances.perceptual import Lpips, NotInstalled, Reward
from cache_dit_serving.measure.distances.table import MEASURES
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from tests.support.reference_pictures import smooth

PICTURE, OTHER = smooth(1, 40, 48), smooth(2, 40, 48)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a CLIP of random weights, with its processor."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clips") / "tiny-clip"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED_FOLDER / "tokenizer")
    text = sizes | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": 0}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=sizes | {"image_size": 32, "patch_size": 8}, projection_dim=8)
    ).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_a_reward_is_the_scaled_cosine_of_both_embeddings(clip: Path) -> None:
    from PIL import Image
    from transformers import CLIPModel, CLIPProcessor

    reward = Reward(str(clip))
    assert reward.weights == "tiny-clip"
    score = reward(PICTURE, OTHER, "a red apple")
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    image = Image.fromarray((255 * PICTURE).round().astype(np.uint8))
    with torch.inference_mode():
        made = model(**processor(text=["a red apple"], images=[image], return_tensors="pt"))
        cosine = torch.nn.functional.cosine_similarity(made.text_embeds, made.image_embeds)
        expected = float(cosine * model.logit_scale.exp())
    assert score == pytest.approx(expected, abs=1e-4)
    assert reward(PICTURE, PICTURE, "a red apple") == score, "without a reference"
    assert reward(OTHER, PICTURE, "a red apple") != score


def test_a_reward_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotInstalled, match=f"{tmp_path} is no folder of a CLIP"):
        Reward(str(tmp_path))(PICTURE, OTHER, "a cat")


@pytest.mark.skipif(importlib.util.find_spec("lpips") is not None, reason="lpips is installed")
def test_lpips_names_the_package_that_is_missing() -> None:
    with pytest.raises(NotInstalled, match="pip install lpips"):
        Lpips()(PICTURE, OTHER)


def test_lpips_names_the_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(NotInstalled, match=r"alexnet-\*\.pth of torchvision in"):
        Lpips(folder=tmp_path)(PICTURE, OTHER)


def test_lpips_gets_both_pictures_as_it_expects_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class StandIn(torch.nn.Module):
        """Instead of the package's network: the distance of the first channel, which lies within -1 and 1."""

        def __init__(self, net: str, **_: Any) -> None:
            super().__init__()
            assert net == "vgg"

        def forward(self, ours: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
            assert ours.shape == reference.shape == (1, 3, 40, 48)
            assert -1 <= ours.min() < 0 < ours.max() <= 1
            return (ours - reference)[:, 0].abs().mean()[None, None, None, None]

    package = ModuleType("lpips")
    package.LPIPS = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    measure = Lpips("vgg")
    assert measure.weights == "vgg of torchvision"
    assert measure(PICTURE, OTHER) == pytest.approx(2 * np.abs(PICTURE - OTHER)[..., 0].mean(), abs=1e-5)


def test_a_measure_has_a_row_that_says_what_it_needs() -> None:
    assert {row.name for row in MEASURES.values() if row.needs} == {Lpips.name, Reward.name}
