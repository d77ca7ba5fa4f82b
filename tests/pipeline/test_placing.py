"""Offload: the hooks that a CPU can run, around the cache, LoRAs and compiled blocks; and what is refused."""

from __future__ import annotations

from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from cache_dit_serving.config.acceleration import CompileSettings, QuantizeSettings
from cache_dit_serving.config.settings import LoraSettings, ModelSettings, Settings
from cache_dit_serving.errors import LoadError
from cache_dit_serving.pipeline import placing
from cache_dit_serving.pipeline.protocol import Loaded
from tests.support.in_process import EMBEDDED, draw, inside, load, unwarmed
from tests.support.loras import with_loras

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
LOSSLESS: dict[str, Any] = {"speed": "lossless", "num_inference_steps": 4}
MONO: dict[str, Any] = {"loras": [{"name": "mono", "scale": 0.7}]}
REQUESTS: dict[str, dict[str, Any]] = {
    "cached": {},
    "no cache": LOSSLESS,
    "cached again": {"speed": "fast"},
    "dynamic pruning": {"cache": {"cache_type": "DBPrune", "residual_diff_threshold": 0.1}},
    "a lora": MONO,
    "a lora, no cache": MONO | LOSSLESS,
}


def with_model(settings: Settings = EMBEDDED, **fields: Any) -> Settings:
    return settings.model_copy(update={"model": settings.model.model_copy(update=fields)})


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands in for the GPU: hooks move components from it to itself."""
    monkeypatch.setattr(placing, "check", lambda model, device: None)


def pictures(loaded: Loaded) -> dict[str, np.ndarray[Any, Any]]:
    return {name: draw(loaded, **fields).media.array for name, fields in REQUESTS.items()}


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray[Any, Any]]:
    mono = LoraSettings(name="mono", path="embedded/monochrome", scale=0.0)
    return pictures(load(unwarmed(with_loras(EMBEDDED, mono))))


@pytest.mark.verified
@pytest.mark.parametrize("offload", ["model", "group"])
@pytest.mark.usefixtures("anywhere")
def test_pictures_are_those_without_offload(offload: str, expected: dict[str, np.ndarray[Any, Any]]) -> None:
    settings = with_loras(EMBEDDED, LoraSettings(name="mono", path="embedded/monochrome", scale=0.0))
    loaded = load(with_model(settings, offload=offload))
    assert loaded.model.speeds.support.refusal is None
    for name in (*REQUESTS, "cached"):  # the hooks are there after a call, too
        assert np.array_equal(draw(loaded, **REQUESTS[name]).media.array, expected[name]), name
    assert {"img2img", "inpaint"} <= {str(task) for task in loaded.model.tasks}


def by_layers(pipe: Any, kind: str, device: torch.device) -> None:
    # As enable_sequential_cpu_offload does, which takes "cpu:0" and "cpu" for two devices.
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            accelerate.cpu_offload(component, CPU, offload_buffers=len(component._parameters) > 0)


@pytest.mark.verified
@pytest.mark.usefixtures("anywhere")
def test_weights_that_are_fetched_layer_by_layer_draw_the_same(
    monkeypatch: pytest.MonkeyPatch, expected: dict[str, np.ndarray[Any, Any]]
) -> None:
    monkeypatch.setattr(placing, "_offload", by_layers)
    settings = with_loras(EMBEDDED, LoraSettings(name="mono", path="embedded/monochrome", scale=0.0))
    loaded = load(unwarmed(with_model(settings, offload="sequential")))
    pipe: Any = inside(loaded)._part.pipe
    assert pipe.transformer.transformer_blocks[0].attn.to_q.base_layer.weight.device.type == "meta"
    for name, array in pictures(loaded).items():
        assert np.array_equal(array, expected[name]), name


@pytest.mark.parametrize("error", [KeyError, RuntimeError])
@pytest.mark.usefixtures("anywhere")
def test_what_a_failed_call_left_on_the_device_is_sent_back(
    error: type[Exception], expected: dict[str, np.ndarray[Any, Any]]
) -> None:
    loaded = load(unwarmed(with_model(offload="model")))
    pipe: Any = inside(loaded)._part.pipe
    sent: list[int] = []
    pipe._all_hooks[0].offload = lambda: sent.append(0)

    def fail(done: int) -> None:
        raise error

    with pytest.raises(error):
        draw(loaded, fail)
    assert sent
    assert np.array_equal(draw(loaded).media.array, expected["cached"])


@pytest.mark.usefixtures("anywhere")
def test_a_pipeline_is_spread_over_devices_as_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, expected: dict[str, np.ndarray[Any, Any]]
) -> None:
    given: list[str | None] = []
    load_it = DiffusionPipeline.from_pretrained

    def noting(*args: Any, **options: Any) -> Any:
        given.append(options.get("device_map"))
        return load_it(*args, **options)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", noting)
    loaded = load(unwarmed(with_model(device_map="balanced")))
    assert given == ["balanced"]
    assert np.array_equal(draw(loaded).media.array, expected["cached"])


def test_a_vae_in_tiles() -> None:
    loaded = load(unwarmed(with_model(vae_tiling=True, vae_slicing=True)))
    pipe: Any = inside(loaded)._part.pipe
    assert pipe.vae.use_tiling
    assert pipe.vae.use_slicing
    assert np.isfinite(draw(loaded).media.array).all()


@pytest.mark.parametrize("fields", [{"offload": "model"}, {"offload": "group"}, {"device_map": "balanced"}])
def test_without_an_accelerator_it_is_refused(fields: dict[str, Any]) -> None:
    (key,) = fields
    with pytest.raises(LoadError, match=rf"model\.{key}: {fields[key]} wants an accelerator, and there is none here"):
        load(with_model(**fields))


@pytest.mark.parametrize(
    ("model", "others", "words"),
    [
        ({"offload": "model", "device_map": "balanced"}, {}, "contradict each other"),
        ({"offload": "model", "lora_folder": "/x"}, {}, "no LoRA can be loaded later"),
        ({"offload": "group"}, {"compile": CompileSettings()}, "compile does not work with model.offload: group"),
        ({"offload": "sequential"}, {"quantize": QuantizeSettings(quant_type="int8")}, "quantize does not work with"),
    ],
)
def test_what_does_not_go_together_is_refused(model: dict[str, Any], others: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings(model=ModelSettings(**model), **others)
