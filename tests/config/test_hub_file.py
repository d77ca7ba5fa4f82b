"""Files of hub ids: the forms that name them, the checks before a download, and the file after it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from cache_dit_serving import preflight
from cache_dit_serving.cli.inspected import Unservable, inspect
from cache_dit_serving.config.catalog import recognise
from cache_dit_serving.config.hub_file import HUB_ID, HubFile, hub_file
from cache_dit_serving.config.settings import LoraSettings, ModelSettings
from cache_dit_serving.config.sources import sources_of
from cache_dit_serving.errors import ConfigError, LoadError
from cache_dit_serving.loras.locate import locate
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER, public_name
from tests.support.checkpoints import TRANSFORMER, VAE, save, save_gguf, transformer_tensors
from tests.support.hub import Hub, hub_of

BASE = str(EMBEDDED_FOLDER)
LORA = EMBEDDED_FOLDER.parent / "loras" / "monochrome.safetensors"
ID = "maker/Files"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = tmp_path / "hub" / ID
    (folder / "split").mkdir(parents=True)
    for name, file in {"flux.safetensors": TRANSFORMER, "split/vae.safetensors": VAE, "red.safetensors": LORA}.items():
        (folder / name).symlink_to(file)
    save_gguf(transformer_tensors(), folder / "flux-Q8_0.gguf")
    save({"a.hada_w1_a": torch.ones(1)}, folder / "loha.safetensors")
    (folder / "old.ckpt").write_bytes(b"\x80\x04")
    with hub_of(tmp_path / "hub", tmp_path / "cache", monkeypatch) as hub:
        yield hub


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("org/repo/a.safetensors", HubFile("org/repo", "a.safetensors")),
        ("org/repo/sub/dir/a-Q4_K.gguf", HubFile("org/repo", "sub/dir/a-Q4_K.gguf")),
        ("org/repo:sub/a.safetensors", HubFile("org/repo", "sub/a.safetensors")),
        ("https://huggingface.co/org/repo/blob/main/a b.safetensors", HubFile("org/repo", "a b.safetensors")),
        ("https://huggingface.co/org/repo/resolve/v2/s/a.gguf?download=true", HubFile("org/repo", "s/a.gguf", "v2")),
        ("hf.co/org/repo/blob/main/a.ckpt", HubFile("org/repo", "a.ckpt")),
        ("org/repo", None),
        ("./org/repo/a.safetensors", None),
        ("/org/repo/a.safetensors", None),
        ("org/repo/../../../a.safetensors", None),
        ("org/repo/folder", None),
        ("https://example.com/org/repo/blob/main/a.safetensors", None),
    ],
)
def test_a_hubs_file_is_named_by_its_path_or_its_address(path: str, expected: HubFile | None) -> None:
    assert hub_file(path) == expected


@pytest.mark.parametrize(
    "address", ["https://huggingface.co/a/b", "hf.co/a/b/", "https://huggingface.co/a/b/tree/main", "hf://a/b"]
)
def test_the_address_of_a_models_page_is_refused_with_its_hub_id(address: str) -> None:
    with pytest.raises(ConfigError, match=r"is an address of the hub; name the model by its hub id, a/b$"):
        preflight.check_path(ModelSettings(path=address))


@pytest.mark.parametrize(
    "name", [*"aé_-.", "a.b", "a-.b", "a--b", "a..b", "a.git", "a.gitb", "a-", "-a", "x" * 96, "x" * 97]
)
def test_a_hub_id_is_told_by_the_rules_of_the_hubs_client(name: str) -> None:
    for hub_id in (f"owner/{name}", f"{name}/model"):
        try:
            validate_repo_id(hub_id)
        except HFValidationError:
            with pytest.raises(Unservable, match="neither a folder or file on the server nor a hub id"):
                inspect(hub_id)
        else:
            assert HUB_ID.fullmatch(hub_id)


def test_a_file_of_the_hub_is_checked_by_its_header_and_downloaded_as_it_is_loaded(hub: Hub) -> None:
    model = ModelSettings(
        path=f"{ID}/flux.safetensors",
        base=BASE,
        components={"vae": f"https://huggingface.co/{ID}/blob/main/split/vae.safetensors"},
        loras=(LoraSettings(name="red", path=f"{ID}:red.safetensors"),),
    )
    checked = preflight.check_sources(model)
    assert checked is not None
    assert {name: each.name for name, each in checked.components.items()} == {
        "transformer": "flux.safetensors",
        "vae": "vae.safetensors",
    }
    preflight.check_path(model)
    preflight.check_loras(model)
    assert hub.given == []
    files = {name: each.file for name, each in sources_of(model).components.items()}
    assert files["transformer"] is not None
    assert files["transformer"].path.read_bytes() == TRANSFORMER.read_bytes()
    assert locate(model.loras[0]).read_bytes() == LORA.read_bytes()
    assert sorted(hub.given) == ["flux.safetensors", "red.safetensors", "vae.safetensors"]
    assert public_name(model.path) == "flux.safetensors"
    sources_of(model)
    assert len(hub.given) == 3


def test_a_gguf_file_of_the_hub_is_read_after_its_download(hub: Hub) -> None:
    model = ModelSettings(path=f"{ID}/flux-Q8_0.gguf", base=BASE)
    assert preflight.check_sources(model) is None
    assert hub.given == []
    assert sources_of(model).components["transformer"].name == "flux-Q8_0.gguf"


def test_the_configuration_for_a_file_of_the_hub_is_its_familys_before_and_after_its_download(hub: Hub) -> None:
    path = f"{ID}/flux.safetensors"
    before = recognise(path)
    sources_of(ModelSettings(path=path, base=BASE))
    assert recognise(path) == before
    assert "flux" in before.why
    assert recognise(f"{ID}/flux-Q8_0.gguf", base="black-forest-labs/FLUX.1-dev").name == "flux"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (f"{ID}/none.safetensors", f"on the hub, {ID} has no file none.safetensors; it has flux-Q8_0.gguf, flux.safe"),
        ("maker/None/a.safetensors", "on the hub, maker/None is neither a folder here nor known to the hub"),
        (f"{ID}/old.ckpt", "old.ckpt: only .safetensors files are loaded, not .ckpt: it is a pickle"),
        (f"{ID}/red.safetensors", "red.safetensors is a LoRA .*: give it in model.loras"),
    ],
)
def test_a_file_that_the_hub_has_not_or_that_is_not_loaded_ends_the_start(hub: Hub, path: str, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.path: .*{words}"):
        preflight.check_sources(ModelSettings(path=path, base=BASE))
    assert hub.given == []


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({"path": ID}, f"{ID} has 4 .safetensors files; say which by weight_name"),
        ({"path": ID, "weight_name": "blue.safetensors"}, f"{ID} has no file blue.safetensors; it has flux"),
        ({"path": ID, "weight_name": "old.ckpt"}, r"\(old.ckpt\): only .safetensors files are loaded"),
        ({"path": f"{ID}/loha.safetensors"}, r"\(loha.safetensors\): its format is LoHa"),
        ({"path": "maker/None"}, "maker/None is neither a folder here nor known to the hub"),
        ({"path": "./nowhere"}, "its path is neither a file, a folder nor a hub id like owner/name"),
    ],
)
def test_a_lora_that_the_hub_has_not_or_that_is_not_loaded_ends_the_start(
    hub: Hub, lora: dict[str, str], words: str
) -> None:
    settings = LoraSettings(name="red", **lora)
    with pytest.raises(ConfigError, match=rf"^model\.loras: LoRA red:? ?{words}"):
        preflight.check_loras(ModelSettings(loras=(settings,)))
    assert hub.given == []


def test_a_lora_that_the_hub_has_not_is_refused_as_it_is_loaded_too(hub: Hub) -> None:
    with pytest.raises(LoadError, match=f"^LoRA red: {ID} has no file blue.safetensors; it has flux"):
        locate(LoraSettings(name="red", path=ID, weight_name="blue.safetensors"))


def test_a_file_of_the_hub_is_inspected_by_its_header(hub: Hub) -> None:
    assert (found := inspect(f"{ID}/flux.safetensors")).kind == "transformer alone"
    assert found.facts["family"] == "black-forest-labs/FLUX.1-schnell"
    assert inspect(f"{ID}/red.safetensors").kind == "LoRA"
    assert hub.given == []
    with pytest.raises(Unservable, match=rf"{ID} has no file none\.gguf; it has flux"):
        inspect(f"{ID}/none.gguf")
    with pytest.raises(Unservable, match=r"Q8_0\.gguf: a GGUF file on the hub is read after its download alone"):
        inspect(f"{ID}/flux-Q8_0.gguf")


def test_the_only_lora_of_a_hub_id_is_taken(hub: Hub) -> None:
    (hub.root / "maker" / "One").mkdir()
    (hub.root / "maker" / "One" / "mine.safetensors").symlink_to(LORA)
    assert locate(LoraSettings(name="red", path="maker/One")).name == "mine.safetensors"
