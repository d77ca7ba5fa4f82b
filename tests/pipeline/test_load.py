"""Loading: what the settings of a model change in it."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from pydantic import ValidationError

from cache_dit_serving import preflight
from cache_dit_serving.config.settings import ModelSettings, ServerSettings, Settings
from cache_dit_serving.engine.model_info import model_info
from cache_dit_serving.errors import ConfigError, LoadError, logged
from cache_dit_serving.model_folder import weights
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER, load_pipeline, locate
from cache_dit_serving.safetensors_header import SafetensorsHeader, read_header
from tests.support.families import save_family
from tests.support.folders import as_variant, edit, linked, save, sharded, tensors_of
from tests.support.hub import hub_of
from tests.support.in_process import load


def test_keys_of_the_schedulers_configuration_can_be_changed(tmp_path: Path) -> None:
    folder = str(save_family("StableDiffusion3", tmp_path))
    plain = load_pipeline(Settings(model=ModelSettings(path=folder, dtype="float32")), print).scheduler
    changed = load_pipeline(
        Settings(model=ModelSettings(path=folder, dtype="float32", scheduler={"shift": 7.0, "shift_terminal": None})),
        print,
    ).scheduler
    assert type(changed) is type(plain)
    assert dict(changed.config) == dict(plain.config) | {"shift": 7.0, "shift_terminal": None}
    plain.set_timesteps(4)
    changed.set_timesteps(4)
    assert changed.sigmas[1] > plain.sigmas[1]


def test_a_key_that_the_scheduler_does_not_have_is_refused_with_those_it_has(tmp_path: Path) -> None:
    settings = ModelSettings(path=str(save_family("StableDiffusion3", tmp_path)), scheduler={"flow_shift": 7.0})
    with pytest.raises(LoadError, match=r"model\.scheduler\.flow_shift: FlowMatch.* has no such key; it has: num"):
        load_pipeline(Settings(model=settings), print)


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_a_component_whose_file_lacks_tensors_is_refused(component: str, tmp_path: Path) -> None:
    """diffusers leaves them empty and transformers draws them at random; both load without an error."""
    folder = linked(tmp_path / "model")
    [file] = (folder / component).glob("*.safetensors")
    tensors = tensors_of(file)
    names = sorted(name for name in tensors if name.endswith(".weight"))[:2]
    save(file, {name: tensor for name, tensor in tensors.items() if name not in names})
    with pytest.raises(LoadError, match=rf"^the files of {component} lack 2 tensors \({names[0]}, {names[1]}\)"):
        load_pipeline(Settings(model=ModelSettings(path=str(folder))), print)


@pytest.mark.verified
def test_the_only_variant_of_a_folder_is_loaded_and_said(tmp_path: Path) -> None:
    folder = linked(tmp_path / "model")
    as_variant(folder, "fp16", "text_encoder", "transformer", "vae")
    sharded(folder / "text_encoder_2", "model", "fp16")
    said: list[str] = []
    plain = load_pipeline(Settings(model=ModelSettings(path=str(EMBEDDED_FOLDER))), print)
    found = load_pipeline(Settings(model=ModelSettings(path=str(folder))), said.append)
    assert said == ["loading the weights of model, variant fp16, as bfloat16"]
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        expected, there = (getattr(pipe, name).state_dict() for pipe in (plain, found))
        assert all(bool((there[key] == expected[key]).all()) for key in expected)
    settings = Settings(model=ModelSettings(path=str(folder)), server=ServerSettings(warm_up=False))
    assert model_info(load(settings)).variant == "fp16"


def test_an_error_of_the_libraries_stays_in_the_log(tmp_path: Path) -> None:
    folder = linked(tmp_path / "secret-customer" / "model")
    edit(folder / "text_encoder" / "config.json", lambda config: config | {"hidden_act": "no-such-function"})
    with pytest.raises(LoadError) as refused:
        load_pipeline(Settings(model=ModelSettings(path=str(folder))), print)
    assert str(refused.value) == "the model's files could not be loaded; the server's log has the details"
    line = logged(str(refused.value), refused.value.__cause__)
    assert line.startswith("the model's files could not be loaded: KeyError:")
    assert "log has the details" not in line


def test_a_model_in_a_subfolder_is_loaded_from_a_folder_and_from_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    hub = tmp_path / "models--maker--Several"
    linked(hub / "snapshots" / revision / "small" / "emoji")
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(revision)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for path in (str(hub / "snapshots" / revision), "maker/Several"):
        pipe = load_pipeline(Settings(model=ModelSettings(path=path, subfolder="small/emoji")), print)
        assert type(pipe).__name__ == "FluxPipeline"
    with pytest.raises(LoadError, match=r"it has no folder big \(model\.subfolder\)$"):
        load_pipeline(Settings(model=ModelSettings(path=str(hub), subfolder="big")), print)


def test_the_only_variant_of_a_hub_id_is_loaded_from_the_hub_and_from_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = linked(tmp_path / "hub" / "maker" / "Half")
    as_variant(folder, "fp16", "text_encoder", "text_encoder_2", "transformer", "vae")
    model = ModelSettings(path="maker/Half")
    with hub_of(tmp_path / "hub", tmp_path / "cache", monkeypatch):
        preflight.check_path(model)
        assert locate(model)[:2] == ("maker/Half", "fp16")
        with pytest.raises(ConfigError, match=r"'maker/Half': the model has no weights of the variant 'bf16'.*is fp16"):
            preflight.check_path(model.model_copy(update={"variant": "bf16"}))
        as_variant(linked(tmp_path / "hub" / "maker" / "Both"), "fp16", "transformer")
        as_variant(tmp_path / "hub" / "maker" / "Both", "bf16", "vae")
        with pytest.raises(ConfigError, match="the components' weights have no variant in common: transformer has fp"):
            preflight.check_path(ModelSettings(path="maker/Both"))
        said: list[str] = []
        load_pipeline(Settings(model=model), said.append)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    load_pipeline(Settings(model=model), said.append)
    assert said == ["loading the weights of maker/Half, variant fp16, as bfloat16"] * 2


@pytest.mark.verified
def test_a_start_reads_the_headers_of_a_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def noted(file: Path) -> SafetensorsHeader:
        read.append(file.parent.name)
        return read_header(file)

    monkeypatch.setattr(weights, "read_header", noted)
    load(Settings(model=ModelSettings(path=str(linked(tmp_path / "model"))), server=ServerSettings(warm_up=False)))
    assert sorted(read) == ["text_encoder", "text_encoder_2", "transformer", "vae"]


@pytest.mark.parametrize("subfolder", ["/etc", "../above", "a/../../b", ".", "a//b", ""])
def test_a_subfolder_lies_within_the_model(subfolder: str) -> None:
    with pytest.raises(ValidationError, match="subfolder"):
        ModelSettings(path="maker/Several", subfolder=subfolder)
