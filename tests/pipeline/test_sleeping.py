"""Sleep of a loaded model: the weights' memory is given back, and pictures after it are those before, bit for bit."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache_dit_serving import host_memory
from cache_dit_serving.config.acceleration import QuantizeSettings
from cache_dit_serving.config.settings import LoraSettings, Settings
from cache_dit_serving.errors import InvalidRequest, OutOfMemory
from cache_dit_serving.pipeline import host_copy, placing, sleeping
from cache_dit_serving.pipeline.host_copy import HostCopy, storages_on
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from cache_dit_serving.pipeline.protocol import Loaded
from cache_dit_serving.pipeline.shared_weights import SharedWeights
from tests.support.in_process import EMBEDDED, UNCACHED, draw, inside, load, load_again, unwarmed
from tests.support.loras import with_loras

pytestmark = pytest.mark.slow

MONO = LoraSettings(name="mono", path="embedded/monochrome", scale=0.0)
REQUESTS: dict[str, dict[str, Any]] = {
    "cached": {},
    "lossless": {"speed": "lossless", "num_inference_steps": 4},
    "a lora": {"loras": [{"name": "mono", "scale": 0.7}], "num_inference_steps": 4},
    "guided": {"true_cfg_scale": 3.0, "negative_prompt": "a cat", "num_inference_steps": 4},
}


@pytest.fixture(autouse=True)
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands in for the GPU, and the pieces of the copy end within weights."""
    monkeypatch.setattr(sleeping, "why_not_in_host_memory", lambda device: None)
    monkeypatch.setattr(host_copy, "CHUNK_BYTES", 100_001)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load(unwarmed(with_loras(EMBEDDED, MONO)))


def never() -> bool:
    return False


def modules(loaded: Loaded) -> list[torch.nn.Module]:
    components = inside(loaded)._part.pipe.components.values()
    return [each for each in components if isinstance(each, torch.nn.Module)]


def weight_bytes(loaded: Loaded) -> int:
    return sum(storage.nbytes() for storage in storages_on("cpu", modules(loaded)))


def pictures(loaded: Loaded, names: tuple[str, ...] = tuple(REQUESTS)) -> dict[str, np.ndarray[Any, Any]]:
    return {name: draw(loaded, **REQUESTS[name]).media.array for name in names}


def assert_same(drawn: dict[str, np.ndarray[Any, Any]], expected: dict[str, np.ndarray[Any, Any]]) -> None:
    assert [name for name in expected if not np.array_equal(drawn[name], expected[name])] == []


def test_all_weights_leave_the_device_and_pictures_are_the_same_after_each_sleep(loaded: Loaded) -> None:
    runner, expected, whole = loaded.runner, pictures(loaded), weight_bytes(loaded)
    tensors = [id(tensor) for module in modules(loaded) for tensor in module.parameters()]
    for _ in range(2):
        draw(loaded)  # the cache and the prompt cache hold something
        assert runner.sleep(never) == whole
        assert weight_bytes(loaded) == 0
        held = runner.memory()
        assert held["sleeping_weight_bytes"] == whole
        assert held["cached_activation_bytes"] == held["prompt_cache_bytes"] == 0
        runner.wake(lambda: None)
        assert weight_bytes(loaded) == whole
        assert "sleeping_weight_bytes" not in runner.memory()
        assert_same(pictures(loaded), expected)
    assert [id(tensor) for module in modules(loaded) for tensor in module.parameters()] == tensors


def test_a_sleep_that_is_stopped_leaves_all_as_it_was(loaded: Loaded) -> None:
    expected, whole = pictures(loaded, ("cached",)), weight_bytes(loaded)
    activations = loaded.runner.memory()["cached_activation_bytes"]
    pieces: list[int] = []

    def at_the_third() -> bool:
        pieces.append(0)
        return len(pieces) == 3

    assert loaded.runner.sleep(at_the_third) is None
    assert len(pieces) == 3
    assert weight_bytes(loaded) == whole
    assert loaded.runner.memory()["cached_activation_bytes"] == activations > 0
    assert_same(pictures(loaded, ("cached",)), expected)


def test_weights_that_do_not_fit_on_waking_stay_in_host_memory_and_wake_later(loaded: Loaded) -> None:
    expected, runner = pictures(loaded, ("cached", "a lora")), loaded.runner
    runner.sleep(never)
    pieces: list[int] = []

    def out_of_memory() -> None:
        pieces.append(0)
        if len(pieces) == 5:
            raise torch.OutOfMemoryError

    with pytest.raises(OutOfMemory):
        runner.wake(out_of_memory)
    assert weight_bytes(loaded) == 0
    runner.wake(lambda: None)
    assert_same(pictures(loaded, ("cached", "a lora")), expected)


def test_a_host_with_too_little_memory_refuses_and_names_the_bytes(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weight_bytes(loaded)
    monkeypatch.setattr(sleeping, "free_host_bytes", lambda: whole - 1)
    with pytest.raises(InvalidRequest, match=r"the weights need \d.\d GiB of host memory, and .* `disk` needs none"):
        loaded.runner.sleep(never)
    assert weight_bytes(loaded) == whole


def test_ranks_of_one_machine_share_its_memory(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleeping, "free_host_bytes", lambda: 2 * weight_bytes(loaded))
    nothing = SharedWeights().of("")
    part, cpu = inside(loaded)._part, torch.device("cpu")
    alone, four = (sleeping.Sleeping([part], cpu, nothing, number) for number in (2, 3))
    with pytest.raises(InvalidRequest):
        four.sleep(lambda: None, never)
    assert alone.sleep(lambda: None, never) is not None
    alone.wake(lambda: None)


def test_a_lora_that_is_loaded_after_a_sleep_draws_as_before(tmp_path: Path) -> None:
    def of_folder(settings: Settings) -> Settings:
        return settings.model_copy(update={"model": settings.model.model_copy(update={"lora_folder": tmp_path})})

    source = load(unwarmed(with_loras(EMBEDDED, MONO)))
    expected = pictures(source, ("a lora",))
    (tmp_path / "mono.safetensors").symlink_to(EMBEDDED_FOLDER.parent / "loras" / "monochrome.safetensors")
    loaded = load(of_folder(unwarmed(EMBEDDED)))
    loaded.runner.sleep(never)
    loaded.runner.wake(lambda: None)
    assert_same(pictures(loaded, ("a lora",)), expected)
    loaded.runner.sleep(never)
    loaded.runner.wake(lambda: None)
    assert_same(pictures(loaded, ("a lora",)), expected)


def test_quantised_weights_leave_and_come_back_whole() -> None:
    quantised = unwarmed(UNCACHED).model_copy(update={"quantize": QuantizeSettings(quant_type="int8_weight_only")})
    loaded = load(quantised)
    expected, whole = pictures(loaded, ("cached",)), weight_bytes(loaded)
    loaded.runner.sleep(never)
    assert weight_bytes(loaded) == 0
    loaded.runner.wake(lambda: None)
    assert weight_bytes(loaded) == whole
    assert_same(pictures(loaded, ("cached",)), expected)


@pytest.mark.parametrize("offload", ["model", "group"])
def test_the_hooks_of_offload_find_the_weights_again(offload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "check", lambda model, device: None)
    model = EMBEDDED.model.model_copy(update={"offload": offload})
    loaded = load(unwarmed(EMBEDDED.model_copy(update={"model": model})))
    expected = pictures(loaded, ("cached", "lossless"))
    loaded.runner.sleep(never)
    loaded.runner.wake(lambda: None)
    assert_same(pictures(loaded, ("cached", "lossless")), expected)


def test_weights_that_share_their_memory_are_copied_once_and_share_it_afterwards() -> None:
    one, tied, view = (torch.nn.Linear(8, 8, bias=False) for _ in range(3))
    tied.weight = one.weight
    view.weight = torch.nn.Parameter(one.weight.detach()[2:4])
    before = one.weight.detach().clone()
    storages = storages_on("cpu", [one, tied, view])
    assert len(storages) == 1
    copy = HostCopy.of(storages, never, free=10**6)
    assert copy is not None
    host_copy.empty(storages)
    assert one.weight.untyped_storage().nbytes() == 0
    copy.restore(lambda: None)
    assert torch.equal(one.weight, before)
    assert view.weight.data_ptr() == one.weight[2:4].data_ptr()


def test_where_no_memory_can_be_page_locked_the_copy_lies_in_other_memory() -> None:
    assert not torch.cuda.is_available()
    pieces = list(host_copy._chunks(250_000, pinned=True))
    assert [piece.nbytes for piece in pieces] == [100_001, 100_001, 49_998]


def test_only_weights_on_the_device_are_taken() -> None:
    assert storages_on("cuda", [torch.nn.Linear(8, 8)]) == []
    assert storages_on("cpu", [torch.nn.Linear(8, 8, device="meta")]) == []


def test_a_dropped_model_holds_no_weights_whoever_still_knows_it() -> None:
    loaded = load(unwarmed(EMBEDDED))
    known = modules(loaded)
    loaded.runner.drop()
    assert storages_on("cpu", known) == []


@pytest.mark.parametrize("set_aside", [True, False])
def test_a_drop_leaves_the_garbage_collector_what_it_had_to_walk(set_aside: bool) -> None:
    """A server sets all objects aside once it is ready: after a drop those of the libraries are, as before."""
    loaded = load_again()
    (gc.freeze if set_aside else gc.unfreeze)()
    try:
        loaded.runner.drop()
        assert (gc.get_freeze_count() > 0) == set_aside
    finally:
        gc.freeze()  # as conftest.py has it


def test_the_host_level_is_refused_on_a_cpu(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(
        InvalidRequest, match="the weights of a model on cpu lie there already; `disk` drops them"
    ) as no:
        loaded.runner.sleep(never)
    assert no.value.param == "level"


def test_free_memory_is_that_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (
        ("memory.max", "1000"),
        ("memory.current", "900"),
        ("memory.stat", "anon 1\ninactive_file 50\n"),
    ):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(host_memory, "CGROUP", tmp_path)
    assert host_memory.free_host_bytes() == 150
    assert host_memory.host_bytes() == 1000
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory.free_host_bytes() > 2**20
    assert host_memory.host_bytes() > 2**20
