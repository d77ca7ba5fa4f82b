"""Reload of weights in place: the pictures are those of a model that was started with them, or nothing has changed."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cache_dit_serving.config.acceleration import QuantizeSettings
from cache_dit_serving.config.settings import LoraSettings, Settings
from cache_dit_serving.engine.model_info import model_info
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from cache_dit_serving.pipeline.protocol import Loaded, Reloaded, WeightsChoice
from tests.support.in_process import EMBEDDED, draw, inside, load, unwarmed
from tests.support.loras import with_loras

pytestmark = pytest.mark.slow

Tensors = dict[str, torch.Tensor]
FILE = "diffusion_pytorch_model.safetensors"
MONO = LoraSettings(name="mono", path="embedded/monochrome", scale=0.0)
A_LORA: dict[str, Any] = {"loras": [{"name": "mono", "scale": 0.7}], "num_inference_steps": 4}


def with_model(settings: Settings = EMBEDDED, **fields: Any) -> Settings:
    return unwarmed(settings.model_copy(update={"model": settings.model.model_copy(update=fields)}))


def save(tensors: Tensors, folder: Path, file: str = FILE) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / file)


@pytest.fixture(scope="module")
def original() -> Tensors:
    return load_file(EMBEDDED_FOLDER / "transformer" / FILE)


@pytest.fixture(scope="module")
def trained(original: Tensors) -> Tensors:
    return {name: tensor * 1.02 for name, tensor in original.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, original: Tensors, trained: Tensors) -> Path:
    root = tmp_path_factory.mktemp("steps")
    save(trained, root / "run" / "step-1" / "transformer")
    save(original, root / "start" / "transformer")
    return root


@pytest.fixture(scope="module")
def loaded(root: Path) -> Loaded:
    return load(with_model(with_loras(EMBEDDED, MONO), reload_folder=root))


def reload(loaded: Loaded, folder: str, sha256: str | None = None) -> Reloaded:
    return loaded.runner.reload(WeightsChoice(folder, sha256), lambda: None)


def pictures(loaded: Loaded) -> list[np.ndarray[Any, Any]]:
    return [draw(loaded, **fields).media.array for fields in ({"num_inference_steps": 4}, A_LORA)]


def weights(loaded: Loaded) -> Tensors:
    return {name: tensor.clone() for name, tensor in inside(loaded)._part.pipe.transformer.state_dict().items()}


def assert_unchanged(loaded: Loaded, before: Tensors) -> None:
    after = weights(loaded)
    assert after.keys() == before.keys()
    assert [name for name, tensor in before.items() if not torch.equal(after[name], tensor)] == []


def test_reloaded_weights_draw_as_a_model_that_was_started_with_them(
    loaded: Loaded, root: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(EMBEDDED_FOLDER, tmp_path / "model")
    shutil.copy(root / "run" / "step-1" / "transformer" / FILE, model / "transformer" / FILE)
    expected = pictures(load(with_model(with_loras(EMBEDDED, MONO), path=str(model))))
    before = pictures(loaded)
    assert draw(loaded).record.weights_version is model_info(loaded).weights_version is None

    reloaded = reload(loaded, "run/step-1")
    content = (root / "run" / "step-1" / "transformer" / FILE).read_bytes()
    line = f"{hashlib.sha256(content).hexdigest()}  transformer/{FILE}\n"
    assert reloaded.version == hashlib.sha256(line.encode()).hexdigest()
    assert reloaded.components == ("transformer",)
    assert loaded.runner.memory()["prompt_cache_bytes"] == 0
    for drawn, wanted, old in zip(pictures(loaded), expected, before, strict=True):
        assert np.array_equal(drawn, wanted)
        assert not np.array_equal(drawn, old)
    assert draw(loaded).record.weights_version == model_info(loaded).weights_version == reloaded.version

    assert reload(loaded, "run/step-1", reloaded.version) == reloaded
    reload(loaded, "start")
    for drawn, wanted in zip(pictures(loaded), before, strict=True):
        assert np.array_equal(drawn, wanted)


def test_weights_of_another_floating_type_are_converted_as_they_are_when_a_model_is_loaded(
    loaded: Loaded, root: Path, trained: Tensors
) -> None:
    save({name: tensor.to(torch.float64) for name, tensor in trained.items()}, root / "wide" / "transformer")
    reload(loaded, "wide")
    held = weights(loaded)
    assert all(torch.equal(held[name], trained[name]) for name in trained if name in held)
    reload(loaded, "start")


def test_all_components_of_a_whole_model_are_reloaded(loaded: Loaded, root: Path) -> None:
    shutil.copytree(EMBEDDED_FOLDER, root / "whole")
    before = pictures(loaded)
    assert set(reload(loaded, "whole").components) == {"transformer", "vae", "text_encoder", "text_encoder_2"}
    for drawn, wanted in zip(pictures(loaded), before, strict=True):
        assert np.array_equal(drawn, wanted)


def first(tensors: Tensors) -> str:
    return min(tensors)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(first(tensors)), r"the files of transformer lack 1 tensor \("),
        (lambda tensors: tensors.update(extra=torch.zeros(2)), r"have other names than the model: 1 tensor \(extra\)"),
        (
            lambda tensors: tensors.update({first(tensors): torch.zeros(3, 5)}),
            r"has the shape \[3, 5\], and the model's has",
        ),
        (
            lambda tensors: tensors.update({first(tensors): tensors[first(tensors)].long()}),
            r"is of the type I64, and the model's of float32",
        ),
        (
            lambda tensors: tensors.update({first(tensors): tensors[first(tensors)].to(torch.uint8)}),
            r"is of the type U8|quantised",
        ),
    ],
    ids=["missing", "unknown", "shape", "type", "packed"],
)
def test_weights_that_do_not_fit_change_nothing(
    change: Callable[[Tensors], object], words: str, loaded: Loaded, root: Path, trained: Tensors
) -> None:
    before, others = weights(loaded), dict(trained)
    change(others)
    save(others, root / "bad" / "transformer")
    with pytest.raises(InvalidRequest, match=words) as refused:
        reload(loaded, "bad")
    assert refused.value.param == "folder"
    assert str(root) not in refused.value.message
    assert_unchanged(loaded, before)


def test_another_digest_a_damaged_file_and_an_empty_folder_change_nothing(
    loaded: Loaded, root: Path, trained: Tensors
) -> None:
    before = weights(loaded)
    with pytest.raises(InvalidRequest, match=r"the digest of the folder is [0-9a-f]{64}") as refused:
        reload(loaded, "run/step-1", "0" * 64)
    assert refused.value.param == "sha256"
    save(trained, root / "cut" / "transformer")
    file = root / "cut" / "transformer" / FILE
    file.write_bytes(file.read_bytes()[:-1])
    (root / "empty").mkdir()
    for folder, words in (
        ("cut", "the file is damaged: .* bytes are there"),
        ("empty", "it has no folder of a component: .*transformer"),
        ("nowhere", "there is no such folder below model.reload_folder"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            reload(loaded, folder)
    assert_unchanged(loaded, before)


def test_no_link_leads_out_of_the_operators_folder(
    loaded: Loaded, root: Path, tmp_path: Path, trained: Tensors
) -> None:
    save(trained, tmp_path / "elsewhere" / "transformer")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "files" / "transformer").mkdir(parents=True)
    (root / "files" / "transformer" / FILE).symlink_to(tmp_path / "elsewhere" / "transformer" / FILE)
    for folder, words in (
        ("linked", "there is no such folder below model.reload_folder"),
        ("../elsewhere", "there is no such folder below model.reload_folder"),
        ("files", "transformer/diffusion_pytorch_model.safetensors is a link that leads out of model.reload_folder"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            reload(loaded, folder)


def test_a_change_that_fails_leaves_the_old_weights_bit_for_bit(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, drawn, signs = weights(loaded), pictures(loaded), []

    def fail() -> None:
        signs.append(0)
        if len(signs) == 50:  # one is for the file: some tensors have changed
            raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        loaded.runner.reload(WeightsChoice("run/step-1", None), fail)
    assert_unchanged(loaded, before)
    for after, wanted in zip(pictures(loaded), drawn, strict=True):
        assert np.array_equal(after, wanted)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            with_model().model_copy(update={"quantize": QuantizeSettings(quant_type="int8_weight_only")}),
            "transformer: its weights are quantised",
        ),
        (
            with_model(loras=(LoraSettings(name="mono", path="embedded/monochrome", scale=1.0, fuse=True),)),
            r"LoRAs are fused into the weights \(mono\)",
        ),
    ],
    ids=["quantised", "fused"],
)
def test_weights_that_are_not_those_of_files_are_refused_by_name(settings: Settings, words: str, root: Path) -> None:
    loaded = load(with_model(settings, reload_folder=root))
    with pytest.raises(InvalidRequest, match=words):
        reload(loaded, "run/step-1")


def test_without_an_open_folder_there_is_no_reload() -> None:
    with pytest.raises(InvalidRequest, match="opens no folder of weights"):
        reload(load(with_model()), "run/step-1")
