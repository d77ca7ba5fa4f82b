"""Models with equal components: these lie in memory once, and each model draws as if it were alone, bit for bit."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cache_dit_serving.config.acceleration import QuantizeSettings
from cache_dit_serving.config.settings import LoraSettings, Settings
from cache_dit_serving.errors import InvalidRequest, LoadError, OutOfMemory
from cache_dit_serving.pipeline import attention, equal_weights, shared_weights, sleeping
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.pipeline.host_copy import storages_on
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from cache_dit_serving.pipeline.protocol import Loaded, WeightsChoice
from cache_dit_serving.pipeline.shared_weights import SharedWeights
from tests.support.in_process import EMBEDDED, UNCACHED, draw, inside, unwarmed
from tests.support.loras import with_loras

pytestmark = pytest.mark.slow

FILE = "diffusion_pytorch_model.safetensors"
PLAIN = unwarmed(EMBEDDED)
MONO = LoraSettings(name="mono", path="embedded/monochrome", scale=0.7)
WITH_LORA = with_loras(PLAIN, MONO)
FUSED = with_loras(PLAIN, MONO.model_copy(update={"fuse": True}))
"""Its transformer has other weights than the embedded one."""
MODELS = {"plain": PLAIN, "fused": FUSED, "lora": WITH_LORA}
ENCODERS = {"text_encoder", "text_encoder_2", "vae"}


@pytest.fixture(autouse=True)
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands in for the GPU."""
    monkeypatch.setattr(sleeping, "why_not_in_host_memory", lambda device: None)


def never() -> bool:
    return False


@functools.cache
def by_itself(name: str) -> Loaded:
    """The model of :data:`MODELS` as this process has loaded it first, and shares with no other one."""
    return assemble(MODELS[name], lambda what: None)


def known(settings: Settings) -> Loaded | None:
    """The model of these settings as it was loaded before: it is not tried again, which takes half of a load."""
    return next((by_itself(name) for name, each in MODELS.items() if each is settings), None)


@dataclass
class Together:
    """Models of one process by name."""

    shared: SharedWeights = field(default_factory=SharedWeights)
    models: dict[str, Loaded] = field(default_factory=dict)

    def load(self, name: str, settings: Settings = PLAIN) -> Loaded:
        self.models[name] = assemble(settings, lambda what: None, known(settings), shared=self.shared.of(name))
        return self.models[name]

    def drop(self, name: str) -> None:
        self.models.pop(name).runner.drop()

    def storages(self, name: str, *components: str) -> set[int]:
        networks = inside(self.models[name])._part.pipe.components
        modules = [each for key, each in networks.items() if not components or key in components]
        return {each._cdata for each in storages_on("cpu", [m for m in modules if isinstance(m, torch.nn.Module)])}

    @property
    def on_device(self) -> int:
        """Bytes of all models' weights on the device."""
        modules = [
            each
            for loaded in self.models.values()
            for each in inside(loaded)._part.pipe.components.values()
            if isinstance(each, torch.nn.Module)
        ]
        return sum(each.nbytes() for each in storages_on("cpu", modules))

    def in_host_memory(self) -> int:
        return sum(each.runner.memory().get("sleeping_weight_bytes", 0) for each in self.models.values())

    def names(self, model: str) -> dict[str, str | None]:
        return {each.name: each.weights for each in self.models[model].runner.facts.components}


def picture(loaded: Loaded, **fields: Any) -> np.ndarray[Any, Any]:
    return draw(loaded, num_inference_steps=2, **fields).media.array


@pytest.fixture(scope="module")
def alone() -> dict[str, np.ndarray[Any, Any]]:
    """The picture of each model that has a process of its own."""
    return {name: picture(by_itself(name)) for name in MODELS}


@pytest.fixture(scope="module")
def sizes() -> dict[str, int]:
    """Bytes of each component of the embedded model."""
    return {each.name: each.bytes for each in by_itself("plain").runner.facts.components}


def test_equal_components_lie_in_memory_once_and_others_do_not(
    alone: dict[str, np.ndarray[Any, Any]], sizes: dict[str, int]
) -> None:
    both = Together()
    both.load("plain")
    assert both.on_device == pytest.approx(sum(sizes.values()), abs=1000)
    both.load("fused", FUSED)
    assert both.on_device == pytest.approx(sum(sizes.values()) + sizes["transformer"], abs=1000)
    for name in ENCODERS:
        weights = [
            {each.data_ptr() for each in getattr(inside(loaded)._part.pipe, name).parameters()}
            for loaded in both.models.values()
        ]
        assert weights[0] == weights[1]
    assert both.names("fused") == {name: f"plain/{name}" for name in ENCODERS} | {"transformer": "fused/transformer"}
    for name, loaded in both.models.items():
        assert np.array_equal(picture(loaded), alone[name])


def test_loras_are_each_models_own_and_the_weights_beneath_are_shared(alone: dict[str, np.ndarray[Any, Any]]) -> None:
    both = Together()
    both.load("lora", WITH_LORA)
    before = both.on_device
    both.load("plain")
    assert both.on_device == pytest.approx(before, abs=1000), "the plain model has no weights that the other one lacks"
    assert both.names("plain") == {name: f"lora/{name}" for name in (*ENCODERS, "transformer")}
    for name, loaded in both.models.items():
        assert np.array_equal(picture(loaded), alone[name])
    both.drop("lora")
    assert np.array_equal(picture(both.models["plain"]), alone["plain"])


def test_shared_weights_go_with_the_last_that_sleeps_and_come_with_the_first_that_wakes(
    alone: dict[str, np.ndarray[Any, Any]], sizes: dict[str, int]
) -> None:
    both = Together()
    plain, fused = both.load("plain").runner, both.load("fused", FUSED).runner
    whole, own = both.on_device, both.on_device - sum(sizes.values())
    assert fused.sleep(never) == own
    assert np.array_equal(picture(both.models["plain"]), alone["plain"])
    assert (both.on_device, both.in_host_memory()) == (whole - own, own)
    assert plain.sleep(never) == whole - own
    assert (both.on_device, both.in_host_memory()) == (0, whole)
    fused.wake(lambda: None)
    assert np.array_equal(picture(both.models["fused"]), alone["fused"])
    assert both.on_device + both.in_host_memory() == whole
    plain.wake(lambda: None)
    assert (both.on_device, both.in_host_memory()) == (whole, 0)
    for name, loaded in both.models.items():
        assert np.array_equal(picture(loaded), alone[name])


def test_a_model_finds_weights_that_sleep_in_host_memory(
    alone: dict[str, np.ndarray[Any, Any]], sizes: dict[str, int]
) -> None:
    both = Together()
    both.load("plain").runner.sleep(never)
    both.load("fused", FUSED)
    assert both.names("fused")["vae"] == "plain/vae"
    assert both.in_host_memory() == pytest.approx(sizes["transformer"], abs=1000), "the rest has come back for it"
    assert np.array_equal(picture(both.models["fused"]), alone["fused"])
    both.models["plain"].runner.wake(lambda: None)
    assert np.array_equal(picture(both.models["plain"]), alone["plain"])


def test_whatever_is_loaded_sleeps_wakes_or_is_dropped_each_model_draws_as_if_it_were_alone(
    alone: dict[str, np.ndarray[Any, Any]],
) -> None:
    choices, together = random.Random(20261128), Together()
    asleep: set[str] = set()
    done: set[str] = set()
    for _ in range(30):
        name = choices.choice(sorted(MODELS))
        if name not in together.models:
            done.add("load")
            together.load(name, MODELS[name])
        elif choices.random() < 0.3:
            done.add("drop asleep" if name in asleep else "drop")
            together.drop(name)
            asleep.discard(name)
        elif name in asleep:
            done.add("wake")
            together.models[name].runner.wake(lambda: None)
            asleep.discard(name)
        else:
            done.add("sleep")
            together.models[name].runner.sleep(never)
            asleep.add(name)
        for awake in together.models.keys() - asleep:
            assert np.array_equal(picture(together.models[awake]), alone[awake]), awake
        for each in together.shared:
            assert any(storage.nbytes() for storage in each.storages) == bool(each.awake), each.name
    assert done == {"load", "sleep", "wake", "drop", "drop asleep"}
    for name in list(together.models):
        together.drop(name)
    assert list(together.shared) == []


def test_one_other_bit_is_another_component(tmp_path: Path) -> None:
    tensors = load_file(EMBEDDED_FOLDER / "vae" / FILE)
    last = max(tensors)
    tensors[last].view(torch.int32).view(-1)[-1] ^= 1
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text((EMBEDDED_FOLDER / "vae" / "config.json").read_text())
    save_file(tensors, tmp_path / "vae" / FILE)
    model = PLAIN.model.model_copy(update={"components": {"vae": str(tmp_path / "vae")}})
    both = Together()
    both.load("plain").runner.sleep(never)
    both.load("other", PLAIN.model_copy(update={"model": model}))
    assert both.names("other")["vae"] == "other/vae"
    assert both.names("other")["transformer"] == "plain/transformer"
    both.models["plain"].runner.wake(lambda: None)
    assert not both.storages("plain", "vae") & both.storages("other", "vae")


def test_quantised_weights_are_shared_too() -> None:
    quantised = unwarmed(UNCACHED).model_copy(update={"quantize": QuantizeSettings(quant_type="int8_weight_only")})
    both = Together()
    expected = picture(both.load("one", quantised))
    before = both.on_device
    both.load("two", quantised)
    assert both.on_device == pytest.approx(before, abs=1000)
    both.models["one"].runner.sleep(never)
    assert np.array_equal(picture(both.models["two"]), expected)
    both.models["two"].runner.sleep(never)
    assert both.on_device == 0
    both.models["one"].runner.wake(lambda: None)
    assert np.array_equal(picture(both.models["one"]), expected)


@pytest.fixture
def reloadable(tmp_path: Path) -> Settings:
    """Settings of a model that opens a folder with another transformer."""
    tensors = load_file(EMBEDDED_FOLDER / "transformer" / FILE)
    (tmp_path / "trained" / "transformer").mkdir(parents=True)
    save_file({name: each * 1.02 for name, each in tensors.items()}, tmp_path / "trained" / "transformer" / FILE)
    return PLAIN.model_copy(update={"model": PLAIN.model.model_copy(update={"reload_folder": tmp_path})})


@pytest.mark.parametrize("state", ["awake", "asleep"])
def test_a_reload_changes_one_model_alone(
    state: str, reloadable: Settings, alone: dict[str, np.ndarray[Any, Any]]
) -> None:
    both = Together()
    first, second = both.load("plain"), both.load("trained", reloadable)
    if state == "asleep":
        first.runner.sleep(never)
    second.runner.reload(WeightsChoice("trained", None), lambda: None)
    assert not np.array_equal(picture(second), alone["plain"])
    assert both.names("trained")["transformer"] == "trained/transformer"
    assert both.names("trained")["vae"] == "plain/vae"
    first.runner.wake(lambda: None)
    assert np.array_equal(picture(first), alone["plain"])


def test_a_reload_for_which_the_device_has_no_room_is_refused(
    reloadable: Settings, alone: dict[str, np.ndarray[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(weights: object) -> None:
        raise torch.OutOfMemoryError

    both = Together()
    both.load("plain")
    second = both.load("trained", reloadable)
    with monkeypatch.context() as patched:
        patched.setattr(equal_weights, "part", no_room)
        with pytest.raises(InvalidRequest, match="other models use the same weights of transformer") as refused:
            second.runner.reload(WeightsChoice("trained", None), lambda: None)
    assert refused.value.param == "folder"
    for loaded in both.models.values():
        assert np.array_equal(picture(loaded), alone["plain"])


def test_a_load_that_fails_leaves_the_others_as_they_were(
    alone: dict[str, np.ndarray[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise LoadError("no")

    both = Together()
    plain = both.load("plain").runner
    plain.sleep(never)
    whole = both.in_host_memory()
    with monkeypatch.context() as patched:
        patched.setattr(attention, "set_backend", fails)
        with pytest.raises(LoadError):
            both.load("fused", FUSED)
    assert (both.on_device, both.in_host_memory()) == (0, whole)
    assert {each.name for each in both.shared} == set(both.names("plain").values())
    plain.wake(lambda: None)
    assert np.array_equal(picture(both.models["plain"]), alone["plain"])


@pytest.mark.parametrize(("fault", "told"), [(torch.OutOfMemoryError, OutOfMemory), (RuntimeError, RuntimeError)])
def test_a_wake_that_fails_leaves_its_model_asleep(
    fault: type[Exception], told: type[Exception], alone: dict[str, np.ndarray[Any, Any]]
) -> None:
    def fails() -> None:
        pieces.append(0)
        if len(pieces) == 3:
            raise fault

    both = Together()
    plain, fused = both.load("plain").runner, both.load("fused", FUSED).runner
    plain.sleep(never)
    plain.will_wake()
    fused.sleep(never)
    assert both.on_device > 0, "what both have stays for the one that is to wake"
    pieces: list[int] = []
    with pytest.raises(told):
        plain.wake(fails)
    assert both.on_device == 0, "it goes with the last one after all"
    plain.wake(lambda: None)
    assert np.array_equal(picture(both.models["plain"]), alone["plain"])


def test_where_the_host_has_no_room_for_a_sleepers_weights_they_stay_on_the_device(
    alone: dict[str, np.ndarray[Any, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    both = Together()
    plain = both.load("plain").runner
    both.load("fused", FUSED)
    plain.sleep(never)
    monkeypatch.setattr(shared_weights, "free_host_bytes", lambda: 0)
    both.drop("fused")
    assert "plain/vae stays on the device" in caplog.text
    plain.wake(lambda: None)
    assert np.array_equal(picture(both.models["plain"]), alone["plain"])


def test_weights_of_kinds_that_cannot_be_shared_are_not() -> None:
    class OfAnotherKind(torch.nn.Parameter):
        pass

    module = torch.nn.Linear(4, 4)
    assert set(equal_weights.weights_of(module)) == {"weight", "bias"}
    module.weight = OfAnotherKind(module.weight.detach())
    assert equal_weights.weights_of(module) == {}


def test_a_parting_that_lacks_memory_changes_nothing() -> None:
    module = torch.nn.Linear(4, 4)
    before = {name: each.data_ptr() for name, each in module.named_parameters()}

    class Failing(dict[str, torch.Tensor]):
        def values(self) -> Any:
            yield next(iter(super().values()))
            raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        equal_weights.part(Failing(equal_weights.weights_of(module)))
    assert {name: each.data_ptr() for name, each in module.named_parameters()} == before
