"""The check of a model's folder: each kind of broken folder names its file and the remedy."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from cache_dit_serving import preflight
from cache_dit_serving.config.settings import ModelSettings
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.model_folder.broken import BrokenFolder
from cache_dit_serving.model_folder.contents import read_folder
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from tests.support.folders import LFS, WEIGHTS, as_variant, edit, linked, replace, save, sharded, tensors_of

Break = Callable[[Path], object]
TRANSFORMER = f"transformer/{WEIGHTS}.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return linked(tmp_path / "secret-customer" / "model")


def truncated(file: Path) -> None:
    replace(file, file.read_bytes()[:100_000])


def without_a_tensor(folder: Path) -> None:
    first, _ = sharded(folder / "transformer")
    tensors = tensors_of(first)
    for name in sorted(tensors)[:4]:
        del tensors[name]
    save(first, tensors)


def dangling(file: Path) -> None:
    file.unlink()
    file.symlink_to("/nowhere/blob")


def remove(file: Path) -> Path:
    file.unlink()
    return file.parent


def packed(file: Path) -> None:
    save(file, {"proj.weight": torch.zeros(4, 4, dtype=torch.int8)})


def scaled(file: Path) -> None:
    weight = torch.zeros(4, 4, dtype=torch.float8_e4m3fn)
    save(file, {"proj.weight": weight, "proj.scale_weight": torch.ones(())})


def of_unknown_type(file: Path) -> None:
    replace(file, file.read_bytes().replace(b'"BF16"', b'"BF17"'))


def shards_alone(folder: Path) -> None:
    sharded(folder / "transformer")
    (folder / "transformer" / f"{WEIGHTS}.safetensors.index.json").unlink()


def of_program(folder: Path) -> None:
    (folder / "transformer" / "mine.py").write_text("raise SystemExit('a program ran')")
    edit(folder / "model_index.json", lambda index: index | {"transformer": ["mine", "MyTransformer"]})


def named(changes: dict[str, object]) -> Break:
    return lambda folder: edit(folder / "model_index.json", lambda index: index | changes)


def piped(file: Path) -> None:
    """A pipe that nobody writes to: to open it would wait for ever."""
    file.unlink()
    os.mkfifo(file)


BROKEN: dict[str, tuple[Break, str]] = {
    "a missing shard": (
        lambda folder: remove(sharded(folder / "transformer")[1]),
        f"transformer/{WEIGHTS}-00002-of-00002.safetensors is not there, but {WEIGHTS}.safetensors.index.json names it",
    ),
    "a truncated shard": (
        lambda folder: truncated(sharded(folder / "transformer")[0]),
        f"transformer/{WEIGHTS}-00001-of-00002.safetensors: the file is damaged: 100000 of ",
    ),
    "a shard of another download": (
        without_a_tensor,
        f"transformer/{WEIGHTS}-00001-of-00002.safetensors lacks 4 tensors (",
    ),
    "shards without an index": (shards_alone, f"transformer/{WEIGHTS}.safetensors.index.json is not there"),
    "an index of elsewhere": (
        lambda folder: replace(
            folder / "vae" / f"{WEIGHTS}.safetensors.index.json", b'{"weight_map": {"a": "../../a.safetensors"}}'
        ),
        f"vae/{WEIGHTS}.safetensors.index.json names a file outside of its folder",
    ),
    "a pointer in place of weights": (
        lambda folder: replace(folder / "vae" / f"{WEIGHTS}.safetensors", LFS),
        f"vae/{WEIGHTS}.safetensors: it is a Git LFS pointer in place of the file: run `git lfs pull`",
    ),
    "a pointer in place of a tokenizer": (
        lambda folder: replace(folder / "tokenizer_2" / "tokenizer.json", LFS),
        "tokenizer_2/tokenizer.json: it is a Git LFS pointer",
    ),
    "a pointer in place of the index": (
        lambda folder: replace(folder / "model_index.json", LFS),
        "model_index.json: it is a Git LFS pointer",
    ),
    "truncated weights": (
        lambda folder: truncated(folder / TRANSFORMER),
        f"{TRANSFORMER}: the file is damaged: 100000 ",
    ),
    "a link without a target": (
        lambda folder: dangling(folder / TRANSFORMER),
        f"{TRANSFORMER} is a link to a file that is not there",
    ),
    "a pipe in place of the index": (
        lambda folder: piped(folder / "model_index.json"),
        "model_index.json is no ordinary file",
    ),
    "a pipe in place of a configuration": (
        lambda folder: piped(folder / "vae" / "config.json"),
        "vae/config.json is no ordinary file",
    ),
    "a pipe in place of weights": (
        lambda folder: piped(folder / TRANSFORMER),
        f"{TRANSFORMER}: it is a folder, a pipe or a device in place of a file",
    ),
    "pickles alone": (
        lambda folder: (folder / TRANSFORMER).rename(folder / "transformer" / f"{WEIGHTS}.bin"),
        f"transformer/{WEIGHTS}.bin: only .safetensors files are loaded, not .bin: it is a pickle, which may run "
        "programs; convert it with torch.load(..., weights_only=True)",
    ),
    "another name": (
        lambda folder: (folder / TRANSFORMER).rename(folder / "transformer" / "flux.safetensors"),
        f"transformer has no {WEIGHTS}.safetensors, only 1 other file (flux.safetensors) of weights",
    ),
    "no weights": (
        lambda folder: remove(folder / TRANSFORMER),
        f"transformer has no weights: {TRANSFORMER} is not there; download it again",
    ),
    "no configuration": (
        lambda folder: remove(folder / "text_encoder" / "config.json"),
        "text_encoder/config.json is not there",
    ),
    "a broken configuration": (
        lambda folder: replace(folder / "vae" / "config.json", b"{"),
        "vae/config.json is not valid JSON",
    ),
    "no folder of a component": (
        lambda folder: shutil.rmtree(folder / "scheduler"),
        "the folder scheduler is not there, but model_index.json names it",
    ),
    "an empty folder of a component": (
        lambda folder: [remove(file) for file in (folder / "tokenizer").iterdir()],
        "the folder tokenizer is empty",
    ),
    "a broken index": (
        lambda folder: replace(folder / "model_index.json", b"[1]"),
        "model_index.json is not valid JSON",
    ),
    "an index without a class": (named({"_class_name": None}), "model_index.json has no _class_name"),
    "a class of a newer diffusers": (
        named({"_class_name": "FluxNextPipeline", "_diffusers_version": "0.99.0"}),
        "model_index.json names the class FluxNextPipeline, which diffusers 0.",
    ),
    "a component of a newer diffusers": (
        named({"transformer": ["diffusers", "FluxNextModel"], "_diffusers_version": "0.99.0"}),
        "does not have; the folder was saved by diffusers 0.99.0",
    ),
    "a pipeline that is a program": (
        named({"_class_name": ["pipeline", "MyPipeline"]}),
        "model_index.json names a pipeline in a program of the folder (MyPipeline), which is not run",
    ),
    "a component that is a program": (
        of_program,
        "model_index.json names transformer as MyTransformer of mine: a program of the folder, which is not run",
    ),
    "packed weights": (
        lambda folder: packed(folder / TRANSFORMER),
        f"{TRANSFORMER} holds quantised weights (proj.weight)",
    ),
    "scaled weights": (
        lambda folder: scaled(folder / TRANSFORMER),
        f"{TRANSFORMER} holds quantised weights (proj.scale",
    ),
    "weights of an unknown type": (
        lambda folder: of_unknown_type(folder / TRANSFORMER),
        f"{TRANSFORMER}: it holds tensors of a type that is not known: BF17",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_folder_names_its_file_and_the_remedy(kind: str, folder: Path) -> None:
    break_it, words = BROKEN[kind]
    break_it(folder)
    with pytest.raises(BrokenFolder, match=re.escape(words)) as refused:
        read_folder(folder)
    assert "\n" not in str(refused.value)
    assert "secret-customer" not in str(refused.value)


@pytest.mark.parametrize("kind", [kind for kind, (_, words) in BROKEN.items() if words.startswith("transformer")])
@pytest.mark.parametrize("of_pipeline", [False, True])
def test_a_broken_folder_of_a_component_is_refused_alike(kind: str, of_pipeline: bool, folder: Path) -> None:
    break_it, words = BROKEN[kind]
    break_it(folder)
    model = ModelSettings(components={"transformer": str(folder if of_pipeline else folder / "transformer")})
    with pytest.raises(ConfigError, match=r"^model\.components\.transformer: " + re.escape(words)) as refused:
        preflight.check_path(model)
    assert "secret-customer" not in str(refused.value)


def test_components_without_weights_are_not_looked_into(folder: Path) -> None:
    components = {name: str(folder / name) for name in ("tokenizer", "scheduler", "vae")}
    assert preflight.check_path(ModelSettings(components=components)) is not None


@pytest.mark.parametrize("name", ["../../etc", "/etc", "a\0b", "\x1b[2J"])
def test_a_component_outside_of_the_folder_is_refused(folder: Path, name: str) -> None:
    named({name: ["diffusers", "AutoencoderKL"]})(folder)
    with pytest.raises(BrokenFolder, match=r"^model_index\.json names a component .*, which is no folder's name"):
        read_folder(folder)


def cached(folder: Path) -> Path:
    hub = folder.with_name("hub")
    (hub / "models--maker--Emoji" / "snapshots").mkdir(parents=True)
    return hub


def of_comfyui(folder: Path) -> Path:
    (folder.with_name("ComfyUI") / "unet").mkdir(parents=True)
    save(folder.with_name("ComfyUI") / "unet" / "flux1-dev.safetensors", {"a": torch.zeros(1)})
    return folder.with_name("ComfyUI")


SEEMING: dict[str, tuple[Callable[[Path], Path], str]] = {
    "an empty folder": (lambda folder: Path(shutil.move(folder, folder.with_name("old"))) and folder, "it is empty"),
    "a component": (
        lambda folder: folder / "transformer",
        "it is a component of the model in the folder above it (FluxTransformer2DModel)",
    ),
    "a single network": (
        lambda folder: Path(shutil.move(folder / "text_encoder", folder.with_name("clip"))),
        "it holds a single network (CLIPTextModel), not a pipeline",
    ),
    "a cache of the hub": (
        cached,
        "it is a cache of the hub; set HF_HUB_CACHE to it, and name a model in it by its hub",
    ),
    "a model in the hub's cache": (
        lambda folder: cached(folder) / "models--maker--Emoji",
        "it is the hub's cache of maker/Emoji; name the hub id, or the folder in its snapshots",
    ),
    "a folder above": (lambda folder: folder.parent, "its folder model has one; name that"),
    "a missing index": (
        lambda folder: remove(folder / "model_index.json"),
        "it has folders of components, but model_index.json is missing",
    ),
    "a folder of ComfyUI": (
        of_comfyui,
        "it holds a checkpoint in a single file, unet/flux1-dev.safetensors; name that file, and the model that "
        "completes it as model.base (--model-base)",
    ),
}


@pytest.mark.parametrize("kind", SEEMING)
def test_a_folder_without_an_index_is_told_by_its_contents(kind: str, folder: Path) -> None:
    made, words = SEEMING[kind]
    there = made(folder)
    there.mkdir(exist_ok=True)
    with pytest.raises(BrokenFolder, match=re.escape(words)):
        read_folder(there)


def test_a_folder_of_a_lora_and_one_of_a_checkpoint_are_told_apart(tmp_path: Path) -> None:
    save(tmp_path / "flux1-dev.safetensors", {"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)})
    with pytest.raises(BrokenFolder, match=r"a checkpoint in a single file, flux1-dev\.safetensors"):
        read_folder(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BrokenFolder, match=r"it holds a LoRA; name it in model\.loras"):
        read_folder(tmp_path)


def test_a_whole_folder_is_described_by_its_headers(folder: Path) -> None:
    found = read_folder(folder)
    assert (found.pipeline_class, found.variant) == ("FluxPipeline", None)
    sizes = {each.name: dict(each.weights.bytes_by_dtype) for each in found.components if each.weights}
    assert sizes.keys() == {"transformer", "vae", "text_encoder", "text_encoder_2"}
    assert sizes["transformer"].keys() == {"BF16"}
    assert "image_encoder" not in {each.name for each in found.components}, "a component that is null is absent"


def test_a_stale_shard_beside_the_index_is_not_read(folder: Path) -> None:
    sharded(folder / "transformer")
    (folder / "transformer" / f"{WEIGHTS}-00003-of-00003.safetensors").write_bytes(LFS)
    (folder / "transformer" / f"{WEIGHTS}.bin").write_bytes(b"\x80")
    read_folder(folder)


def test_the_only_variant_is_found(folder: Path) -> None:
    as_variant(folder, "fp16")
    sharded_as_variant(folder / "text_encoder_2")
    found = read_folder(folder)
    assert found.variant == "fp16"
    assert all(each.weights.files for each in found.components if each.weights)


def sharded_as_variant(component: Path) -> None:
    (component / "model.fp16.safetensors").rename(component / "model.safetensors")
    sharded(component, "model", "fp16")


def test_files_without_a_variant_go_before_those_with_one(folder: Path) -> None:
    (folder / "vae" / f"{WEIGHTS}.fp16.safetensors").write_bytes(LFS)
    assert read_folder(folder).variant is None
    with pytest.raises(BrokenFolder, match=rf"vae/{WEIGHTS}\.fp16\.safetensors: it is a Git LFS"):
        read_folder(folder, variant="fp16")


def test_of_two_variants_the_one_of_the_dtype_is_taken(folder: Path) -> None:
    for file in sorted(folder.glob("*/*.safetensors")):
        for variant in ("fp16", "bf16"):
            file.with_name(f"{file.stem}.{variant}.safetensors").symlink_to(file.resolve())
        file.unlink()
    assert read_folder(folder, dtype="bfloat16").variant == "bf16"
    assert read_folder(folder, dtype="float16").variant == "fp16"
    with pytest.raises(BrokenFolder, match=r"have the variants bf16 and fp16; choose one by model\.variant"):
        read_folder(folder, dtype="float32")


def test_a_variant_that_is_not_there_is_refused_with_those_that_are(folder: Path) -> None:
    with pytest.raises(BrokenFolder, match=r"variant 'fp32' \(model\.variant\); its files have none: leave"):
        read_folder(folder, variant="fp32")
    as_variant(folder, "fp16", "transformer")
    with pytest.raises(BrokenFolder, match=r"variant 'fp32' \(model\.variant\); there is fp16"):
        read_folder(folder, variant="fp32")
    as_variant(folder, "bf16", "vae")
    with pytest.raises(BrokenFolder, match="no variant in common: transformer has fp16; vae has bf16"):
        read_folder(folder)


def test_random_weights_need_no_files_of_weights(folder: Path) -> None:
    for file in folder.glob("*/*.safetensors"):
        file.unlink()
    assert all(each.weights is None for each in read_folder(folder, weights=False).components)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder below one that every user may enter; pytest's own are closed."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(shutil.copytree(EMBEDDED_FOLDER, Path(made) / "model"))


@contextmanager
def as_another_user() -> Iterator[None]:
    """Root may read all files, so the body runs as nobody there."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("closed", [".", "vae", TRANSFORMER, "vae/config.json", "model_index.json"])
def test_files_that_may_not_be_read_are_named(closed: str, open_folder: Path) -> None:
    (open_folder / closed).chmod(0)
    name = "the model's folder" if closed == "." else closed
    with as_another_user(), pytest.raises(BrokenFolder, match=rf"{name}.* cannot be read: Permission denied"):
        read_folder(open_folder)
    (open_folder / closed).chmod(0o755)


def test_a_folder_below_a_closed_one_is_refused(open_folder: Path) -> None:
    open_folder.parent.chmod(0)
    with as_another_user(), pytest.raises(ConfigError, match="the model's path cannot be read: Permission denied"):
        preflight.check_path(ModelSettings(path=str(open_folder)))
    open_folder.parent.chmod(0o755)


def test_the_home_of_an_unknown_user_is_refused() -> None:
    with pytest.raises(ConfigError, match="the home of a user who is not known here"):
        preflight.check_path(ModelSettings(path="~no-such-user/model"))


def test_the_check_reads_headers_alone(folder: Path) -> None:
    """A file of 60 GB without data (a sparse one) is checked as fast as a small one."""
    header = f'{{"big.weight":{{"dtype":"BF16","shape":[{30 * 10**9}],"data_offsets":[0,{60 * 10**9}]}}}}'.encode()
    replace(folder / TRANSFORMER, len(header).to_bytes(8, "little") + header)
    with (folder / TRANSFORMER).open("r+b") as opened:
        opened.truncate(8 + len(header) + 60 * 10**9)
    began = time.process_time()
    found = read_folder(folder)
    assert time.process_time() - began < 1
    assert {"BF16": 60 * 10**9} in [each.weights.bytes_by_dtype for each in found.components if each.weights]
