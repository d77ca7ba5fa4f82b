"""LoRA on the embedded model: as diffusers draws with it, switched exactly, and refused where it does not fit."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from cache_dit_serving.config.settings import LoraSettings
from cache_dit_serving.engine.model_info import model_info
from cache_dit_serving.errors import InvalidRequest, LoadError
from cache_dit_serving.media.inputs import InputImage, Inputs
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from cache_dit_serving.pipeline.protocol import Loaded, Unwatched
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.by_diffusers import embedded_by_diffusers
from tests.support.images import apple
from tests.support.in_process import EMBEDDED, UNCACHED, draw, load, unwarmed
from tests.support.loras import save_lora, with_loras

pytestmark = pytest.mark.slow

STEPS = 8


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("loras")
    pipe = diffusers.DiffusionPipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    return {
        name: save_lora(pipe, folder / f"{name}.safetensors", seed=seed, rank=rank)
        for seed, (name, rank) in enumerate({"red": 2, "blue": 4, "soft": 1}.items())
    }


def lora(name: str, file: Path, **fields: Any) -> LoraSettings:
    return LoraSettings(name=name, path=str(file), **fields)


def picture(loaded: Loaded, loras: list[dict[str, Any]] | None = None, **fields: Any) -> np.ndarray[Any, Any]:
    asked = fields if loras is None else fields | {"loras": loras}
    return draw(loaded, num_inference_steps=STEPS, **asked).media.array


@pytest.fixture(scope="module")
def all_three(files: dict[str, Path]) -> Loaded:
    return load(unwarmed(with_loras(EMBEDDED, *(lora(name, file, scale=0.0) for name, file in files.items()))))


def test_a_lora_draws_as_diffusers_has_it(files: dict[str, Path]) -> None:
    loaded = load(unwarmed(with_loras(UNCACHED, lora("red", files["red"], scale=0.7))))
    expected = by_diffusers(files, {"red": 0.7}, loaded)
    assert np.array_equal(picture(loaded), expected)


def by_diffusers(files: dict[str, Path], scales: dict[str, float], loaded: Loaded) -> np.ndarray[Any, Any]:
    """The picture that plain diffusers draws with these files."""
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        for name in scales:
            pipe.load_lora_weights(str(files[name]), adapter_name=name)
    pipe.set_adapters(list(scales), list(scales.values()))
    return embedded_by_diffusers(pipe, loaded, STEPS)


@pytest.mark.verified
def test_alpha_in_the_metadata_counts(files: dict[str, Path], tmp_path: Path) -> None:
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "to_k", "to_v"])
    fields: dict[str, Any] = config.to_dict()  # type: ignore[no-untyped-call]
    metadata = {f"transformer.{key}": list(value) if isinstance(value, set) else value for key, value in fields.items()}
    file = tmp_path / "strong.safetensors"
    save_file(load_file(files["red"]), file, {"format": "pt", "lora_adapter_metadata": json.dumps(metadata)})
    loaded = load(unwarmed(with_loras(UNCACHED, lora("strong", file), lora("red", files["red"], scale=0.0))))
    both = {"strong": file, "red": files["red"]}
    for scales in ({"strong": 0.5}, {"strong": 1.0}, {"strong": 0.5, "red": 1.0}):
        drawn = picture(loaded, [{"name": name, "scale": scale} for name, scale in scales.items()])
        assert np.array_equal(drawn, by_diffusers(both, scales, loaded)), scales
    assert not np.array_equal(picture(loaded, [{"name": "red", "scale": 1.0}]), picture(loaded))


@pytest.mark.verified
def test_each_combination_is_the_picture_of_a_server_with_just_that(files: dict[str, Path], all_three: Loaded) -> None:
    combinations: list[list[dict[str, Any]]] = [
        [],
        [{"name": "red", "scale": 0.5}],
        [{"name": "red", "scale": 1.0}],
        [{"name": "blue", "scale": -0.5}],
        [{"name": "red", "scale": 0.5}, {"name": "soft", "scale": 1.5}],
        [{"name": "soft", "scale": 1.5}, {"name": "red", "scale": 0.5}],
    ]

    def alone(wanted: list[dict[str, Any]]) -> list[np.ndarray[Any, Any]]:
        loaded = load(unwarmed(with_loras(EMBEDDED, *(lora(file=files[each["name"]], **each) for each in wanted))))
        return [picture(loaded, speed=speed) for speed in ("lossless", "balanced")]

    expected = [alone(wanted) for wanted in combinations]
    requests = [(index, which) for index in range(len(combinations)) for which in (0, 1)] * 2
    random.Random(1).shuffle(requests)
    for index, which in requests:
        speed = ("lossless", "balanced")[which]
        assert np.array_equal(picture(all_three, combinations[index], speed=speed), expected[index][which]), index
    distinct = {array[0].tobytes() for array in expected}
    assert len(distinct) >= len(combinations) - 1  # the order of two may not show


@pytest.mark.verified
def test_siblings_draw_with_the_same_loras(files: dict[str, Path], all_three: Loaded) -> None:
    beginning = Inputs(images=(InputImage(apple(96, 96), ""),))

    def from_a_picture(loaded: Loaded, *loras: dict[str, Any]) -> np.ndarray[Any, Any]:
        fields = {"prompt": "a red apple", "seed": 3, "num_inference_steps": 2 * STEPS, "loras": list(loras)}
        request = GenerateRequest.model_validate(fields | {"image_urls": ["a file"], "strength": 0.5})
        call = plan(resolve(request, loaded.model), beginning).fitted().call
        assert call.pipeline_class == "FluxImg2ImgPipeline"
        return loaded.runner.sample(replace(call, keep_floats=True), Unwatched()).media.array

    red = {"name": "red", "scale": 0.5}
    alone = load(unwarmed(with_loras(EMBEDDED, lora("red", files["red"], scale=0.0))))
    without, text = from_a_picture(all_three), picture(all_three, [red])
    assert np.array_equal(from_a_picture(all_three, red), from_a_picture(alone, red))
    assert not np.array_equal(from_a_picture(all_three, red), without)
    assert np.array_equal(picture(all_three, [red]), text)
    assert np.array_equal(from_a_picture(all_three), without)


def test_a_failure_leaves_no_lora_behind(all_three: Loaded) -> None:
    before = picture(all_three, [])

    def fail(done: int) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        draw(all_three, fail, num_inference_steps=STEPS, loras=[{"name": "blue", "scale": 2.0}])
    assert np.array_equal(picture(all_three, []), before)


@pytest.mark.verified
def test_a_fused_lora_is_in_every_picture(files: dict[str, Path]) -> None:
    settings = with_loras(UNCACHED, lora("red", files["red"], fuse=True), lora("blue", files["blue"], scale=0.0))
    loaded = load(unwarmed(settings))
    beside = load(unwarmed(with_loras(UNCACHED, lora("red", files["red"]))))
    assert np.allclose(picture(loaded), picture(beside), atol=1e-3)
    assert not np.allclose(picture(loaded, [{"name": "blue", "scale": 1.0}]), picture(loaded), atol=1e-3)
    assert model_info(loaded).loras == ["red", "blue"]
    with pytest.raises(InvalidRequest, match="no LoRA of this name to choose; there is: blue"):
        picture(loaded, [{"name": "red"}])


@pytest.mark.parametrize(
    ("loras", "param", "words"),
    [
        ([{"name": "green"}], "loras.0", "there is: red, blue, soft"),
        ([{"name": "../red"}], "loras.0", "there is: red, blue, soft"),
        ([{"name": "red"}, {"name": "red", "scale": 0.1}], "loras.1", "named twice"),
        ([{"name": "red", "scale": 2.5}], "loras.0", "takes -2 to 2"),
    ],
)
def test_a_request_names_loras_that_there_are(
    loras: list[dict[str, Any]], param: str, words: str, all_three: Loaded
) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        picture(all_three, loras)
    assert refused.value.param == param


def test_a_server_without_loras_says_so(embedded: Loaded) -> None:
    with pytest.raises(InvalidRequest, match=r"does not take loras \(this server has none\)"):
        picture(embedded, [{"name": "red"}])


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def not_numbers(file: Path) -> None:
    tensors = load_file(file)
    tensors[next(iter(tensors))][0, 0] = float("nan")
    save_file(tensors, file)


def another_familys(file: Path) -> None:
    save_file({f"transformer.layers.{key}.lora_A.weight": torch.zeros(2, 4) for key in range(5)}, file)


def another_size(file: Path) -> None:
    save_file({name: torch.zeros(tensor.shape[0], 7) for name, tensor in load_file(file).items()}, file)


def one_layer_too_many(file: Path) -> None:
    tensors = load_file(file)
    save_file(tensors | {"transformer.transformer_blocks.99.attn.to_q.lora_A.weight": torch.zeros(2, 64)}, file)


def one_half(file: Path) -> None:
    tensors = load_file(file)
    tensors.pop(next(name for name in tensors if "lora_B" in name))
    save_file(tensors, file)


def zeros(file: Path) -> None:
    with file.open("wb") as opened:
        opened.truncate(2 << 30)


def an_ip_adapter(file: Path) -> None:
    save_file({"image_proj.proj.weight": torch.zeros(2, 2), "ip_adapter.1.to_k_ip.weight": torch.zeros(2, 2)}, file)


def a_textual_inversion(file: Path) -> None:
    save_file({"<a-cat>": torch.zeros(1, 8)}, file)


def nothing(file: Path) -> None:
    save_file({}, file)


def a_pointer(file: Path) -> None:
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 82808\n")


def a_web_page(file: Path) -> None:
    file.write_text("<!DOCTYPE html><html><title>Sign in</title></html>")


def a_checkpoint(file: Path) -> None:
    blocks = "model.diffusion_model.double_blocks.0.img_attn"
    save_file({f"{blocks}.qkv.weight": torch.zeros(6, 2), f"{blocks}.qkv.bias": torch.zeros(6)}, file)


def loha(file: Path) -> None:
    layer = "lora_unet_double_blocks_0_img_attn_proj"
    save_file({f"{layer}.hada_w{side}": torch.ones(2, 2) for side in ("1_a", "1_b", "2_a", "2_b")}, file)


def lokr(file: Path) -> None:
    layer = "transformer.transformer_blocks.0.attn.to_q"
    save_file({f"{layer}.lokr_w1": torch.ones(2, 2), f"{layer}.lokr_w2": torch.ones(64, 64)}, file)


def kohya_dora(file: Path) -> None:
    layer = "lora_unet_double_blocks_0_img_attn_proj"
    tensors = {"lora_down.weight": torch.ones(2, 128), "lora_up.weight": torch.ones(128, 2)}
    save_file({f"{layer}.{key}": value for key, value in (tensors | {"dora_scale": torch.ones(128, 1)}).items()}, file)


def alpha_aside(file: Path) -> None:
    """A file in two namings at once, from which diffusers takes the tensors, and not their alpha."""
    tensors = {
        name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): tensor
        for name, tensor in load_file(file).items()
    }
    layer = next(iter(tensors)).partition(".lora_")[0]
    save_file(tensors | {f"{layer}.alpha": torch.tensor(1.0)}, file)


def control(file: Path) -> None:
    save_file({"double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(4)}, file)


def unknown(file: Path) -> None:
    save_file({"blocks.0.oft_blocks": torch.ones(4, 2, 2)}, file)


def peft_alone(file: Path) -> None:
    tensors = {name.replace("transformer.", "base_model.model.", 1): value for name, value in load_file(file).items()}
    save_file(tensors, file)


def whole_modules(file: Path) -> None:
    fields = {"transformer.r": 2, "transformer.lora_alpha": 2, "transformer.bias": "all"}
    save_file(load_file(file), file, {"lora_adapter_metadata": json.dumps(fields)})


def pickled(file: Path) -> None:
    torch.save({"a": torch.zeros(2)}, file)


@pytest.mark.parametrize(
    ("damage", "suffix", "words"),
    [
        (
            truncated,
            ".safetensors",
            r"\(bad\.safetensors\): the file is damaged: .* bytes are there; download it",
        ),
        (pickled, ".safetensors", "it is a pickle or an archive, not safetensors; convert it"),
        (pickled, ".bin", "only .safetensors files are loaded, not .bin: it is a pickle, .*; convert it"),
        (a_pointer, ".safetensors", "it is a Git LFS pointer in place of the file: run `git lfs pull`"),
        (a_web_page, ".safetensors", "it is a web page in place of the file: download it again"),
        (a_checkpoint, ".safetensors", r"a checkpoint of a whole model .* \(2 tensors, .*\); serve it as the model"),
        (loha, ".safetensors", r"its format is LoHa \(LyCORIS\), which diffusers does not load; merge it"),
        (lokr, ".safetensors", "diffusers does not load .* LoKr, for a FluxPipeline|diffusers cannot load it .LoKr"),
        (kohya_dora, ".safetensors", "its format is DoRA with dora_scale tensors, which diffusers leaves out"),
        (alpha_aside, ".safetensors", r"diffusers applies 72 of its 73 tensors .*, not .*alpha"),
        (control, ".safetensors", "its format is BFL.s control LoRA, .*; serve the whole control model"),
        (unknown, ".safetensors", "its format is unknown: none of its 1 tensors"),
        (peft_alone, ".safetensors", "its format is PEFT.s, and adapter_config.json, .*; put it there"),
        (whole_modules, ".safetensors", "its PEFT configuration sets bias to all, .*; merge it into its model"),
        (not_numbers, ".safetensors", "holds values that are not numbers"),
        (
            another_familys,
            ".safetensors",
            r"5 of 5 .* no layer of this model \(diffusers format\): .*\.layers\.0.* and 2 more",
        ),
        (another_size, ".safetensors", "layers of this model have other sizes"),
        (
            one_layer_too_many,
            ".safetensors",
            r"1 of 73 .* of this model \(diffusers format\): transformer.transformer_blocks.99",
        ),
        (an_ip_adapter, ".safetensors", "the file is an IP-Adapter, which is not supported"),
        (a_textual_inversion, ".safetensors", "the file is a textual inversion, which is not supported"),
        (nothing, ".safetensors", "it holds no LoRA"),
        (one_half, ".safetensors", "only half of a LoRA for transformer"),
        (zeros, ".safetensors", "the file is damaged, or is not safetensors"),
    ],
)
def test_a_bad_file_stops_the_start_and_says_why(
    damage: Callable[[Path], None], suffix: str, words: str, files: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / f"bad{suffix}"
    shutil.copy(files["red"], file)
    damage(file)
    with pytest.raises(LoadError, match=words) as refused:
        load(with_loras(UNCACHED, lora("bad", file)))
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.verified
def test_a_folder_is_enough_where_it_holds_one_file(files: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(files["red"], tmp_path / "one.safetensors")
    loaded = load(unwarmed(with_loras(UNCACHED, lora("red", tmp_path))))
    assert [contents.rank for contents in loaded.runner.loras().values()] == [2]
    shutil.copy(files["red"], tmp_path / "two.safetensors")
    with pytest.raises(LoadError, match=r"2 \.safetensors files; say which by weight_name"):
        load(unwarmed(with_loras(UNCACHED, lora("red", tmp_path))))
    assert load(unwarmed(with_loras(UNCACHED, lora("red", tmp_path, weight_name="two.safetensors")))).model.loras


def test_the_words_that_a_lora_wants_in_a_prompt_are_told(files: dict[str, Path], tmp_path: Path) -> None:
    save_file(load_file(files["red"]), tmp_path / "red.safetensors", {"modelspec.trigger_phrase": "in red chalk"})
    loaded = load(unwarmed(with_loras(UNCACHED, lora("red", tmp_path / "red.safetensors"))))
    assert [contents.trigger_words for contents in loaded.runner.loras().values()] == ["in red chalk"]


def test_the_lora_that_ships_takes_the_colours_out() -> None:
    shipped = LoraSettings(name="monochrome", path="embedded/monochrome", scale=0.0)
    loaded = load(unwarmed(with_loras(UNCACHED, shipped)))

    def colourfulness(scale: float) -> float:
        drawn = picture(loaded, [{"name": "monochrome", "scale": scale}])
        return float(np.ptp(drawn, axis=2).mean())

    without, half, whole = (colourfulness(scale) for scale in (0.0, 0.5, 1.0))
    assert whole < half < without
    assert whole < 0.2 * without


@pytest.mark.verified
def test_those_of_a_folder_are_loaded_when_chosen_and_the_one_used_longest_ago_leaves(
    files: dict[str, Path], all_three: Loaded
) -> None:
    with_folder = EMBEDDED.model_copy(
        update={
            "model": EMBEDDED.model.model_copy(update={"lora_folder": files["red"].parent}),
            "limits": EMBEDDED.limits.model_copy(update={"max_loras": 2}),
        }
    )
    loaded = load(unwarmed(with_folder))
    assert not loaded.runner.loras()
    combinations = [["red"], [], ["blue", "red"], ["soft"], ["red", "soft"], ["blue"], ["soft", "blue"], ["red"], []]
    kept = []
    for names in combinations:
        chosen = [{"name": name, "scale": 1.0} for name in names]
        assert np.array_equal(picture(loaded, chosen), picture(all_three, chosen)), names
        kept.append(set(loaded.runner.loras()))
    assert kept[2:5] == [{"red", "blue"}, {"red", "soft"}, {"red", "soft"}]
    assert all(len(names) <= 2 for names in kept)
    with pytest.raises(InvalidRequest, match="names 3 LoRAs of the server's folder; it keeps at most 2 loaded"):
        picture(loaded, [{"name": name} for name in ("red", "blue", "soft")])


def test_a_bad_file_of_the_folder_fails_its_request_alone(files: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(files["red"], tmp_path / "red.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"{" * 100)
    (tmp_path / "no name!.safetensors").touch()
    settings = UNCACHED.model_copy(
        update={"model": UNCACHED.model.model_copy(update={"lora_folder": tmp_path})},
    )
    loaded = load(unwarmed(settings))
    assert [each.name for each in loaded.model.loras] == ["broken", "red"]
    before = picture(loaded, [{"name": "red"}])
    with pytest.raises(InvalidRequest, match=r"LoRA broken \(broken.safetensors\): the file is damaged"):
        picture(loaded, [{"name": "red"}, {"name": "broken"}])
    assert np.array_equal(picture(loaded, [{"name": "red"}]), before)


def test_a_lora_named_without_a_scale_has_an_effect(all_three: Loaded) -> None:
    assert np.array_equal(picture(all_three, [{"name": "red"}]), picture(all_three, [{"name": "red", "scale": 1.0}]))
