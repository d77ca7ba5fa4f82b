"""Which configuration is for a model: known by its hub id, or by the small files of its folder; never by its path."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache_dit_serving.cli import models
from cache_dit_serving.config import catalog as catalog_module
from cache_dit_serving.config.catalog import recognise
from cache_dit_serving.config.reading import GENERIC_CONFIG, chosen_config, resolve
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER

Files = dict[str, dict[str, object]]

CONFIGURATIONS = {
    "one": """
about: {task: text to image, parameters: 0.1, licence: MIT, pipeline_class: FluxPipeline}
model: {path: maker/one}
""",
    "two": """
about:
  task: text to video
  parameters: 1e9
  hub_ids: [maker/two-again]
  pipeline_class: FluxPipeline
  components: {transformer: {guidance_embeds: true, sizes: [1, 2]}, pipeline: {boundary: 0.9}}
model: {path: maker/two}
""",
    "three": """
about: {pipeline_class: WanPipeline, components: {transformer_2: true, transformer: {in_channels: 16}}}
model: {path: maker/three}
""",
    "four": """
about: {pipeline_class: WanPipeline, components: {scheduler: {shift: 3.0}, transformer: {in_channels: 16}}}
model: {path: maker/four}
""",
}


@pytest.fixture(autouse=True)
def configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "configs"
    folder.mkdir()
    for name, text in CONFIGURATIONS.items():
        (folder / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(catalog_module, "CONFIGS", folder)
    catalog_module.catalog.cache_clear()
    yield
    catalog_module.catalog.cache_clear()


def model(folder: Path, files: Files) -> str:
    """A model's folder, of a name that would mislead, with no more than its small files."""
    folder /= "maker/three"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return str(folder)


@pytest.mark.parametrize(("hub_id", "name"), [("maker/one", "one"), ("maker/two", "two"), ("maker/two-again", "two")])
def test_a_hub_id_that_a_configuration_names_is_its_model(hub_id: str, name: str) -> None:
    assert recognise(hub_id) == (name, f"{hub_id} is its model")


def test_a_folder_is_known_by_the_hub_id_that_it_was_saved_from(tmp_path: Path) -> None:
    files: Files = {"model_index.json": {"_class_name": "FluxPipeline", "_name_or_path": "maker/two"}}
    folder = model(tmp_path, files)
    assert recognise(folder) == ("two", f"{folder} was saved from maker/two")
    files["model_index.json"]["_class_name"] = "SanaPipeline"
    assert recognise(model(tmp_path, files)).name == ""


def test_a_folder_is_known_by_its_class(tmp_path: Path) -> None:
    folder = model(tmp_path, {"model_index.json": {"_class_name": "FluxPipeline"}})
    assert recognise(folder).name == "one"


def test_of_several_that_fit_the_one_with_more_facts_is_taken(tmp_path: Path) -> None:
    files: Files = {
        "model_index.json": {"_class_name": "FluxPipeline", "boundary": 0.9},
        "transformer/config.json": {"guidance_embeds": True, "sizes": [1, 2]},
    }
    assert recognise(model(tmp_path, files)).name == "two"
    files["transformer/config.json"]["sizes"] = [1, 3]
    assert recognise(model(tmp_path, files)).name == "one"


def test_a_component_that_is_there_or_not_tells_models_apart(tmp_path: Path) -> None:
    files: Files = {
        "model_index.json": {"_class_name": "WanPipeline", "transformer_2": [None, None]},
        "transformer/config.json": {"in_channels": 16},
        "scheduler/scheduler_config.json": {"shift": 3.0},
    }
    assert recognise(model(tmp_path, files)).name == "four"
    files["model_index.json"]["transformer_2"] = ["diffusers", "WanTransformer3DModel"]
    files["scheduler/scheduler_config.json"]["shift"] = 5.0
    assert recognise(model(tmp_path, files)).name == "three"


def test_several_that_fit_alike_are_named_and_none_is_taken(tmp_path: Path) -> None:
    files: Files = {
        "model_index.json": {"_class_name": "WanPipeline", "transformer_2": ["diffusers", "WanTransformer3DModel"]},
        "transformer/config.json": {"in_channels": 16},
        "scheduler/scheduler_config.json": {"shift": 3.0},
    }
    found = recognise(model(tmp_path, files))
    assert found == ("", "four and three are for a WanPipeline alike; name one with --config")


@pytest.mark.parametrize(
    "files",
    [
        {"model_index.json": {"_class_name": "SanaPipeline"}},
        {"model_index.json": {"_class_name": "WanPipeline"}, "transformer/config.json": {"in_channels": 36}},
        {"config.json": {}},
    ],
)
def test_what_no_configuration_is_for_starts_from_the_generic_one(files: Files, tmp_path: Path) -> None:
    assert chosen_config({"CACHE_DIT_SERVING__MODEL__PATH": model(tmp_path, files)}).name == GENERIC_CONFIG


def test_a_file_that_is_not_json_is_as_none(tmp_path: Path) -> None:
    folder = model(tmp_path, {"model_index.json": {}})
    Path(folder, "model_index.json").write_text("{")
    assert recognise(folder).name == ""


def test_the_table_says_what_fits_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["name", "task", "size"]
    assert lines[1].split()[-5:] == ["200", "MB", "yes", "MIT", "maker/one"]
    assert lines[2].split()[-4:] == ["GB", "no", "unknown", "maker/two"]
    assert not any("maker/three" in line for line in lines)


def test_the_table_can_be_searched(capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main(["VIDEO"]) == 0
    assert "maker/one" not in capsys.readouterr().out
    assert models.main(["nothing-such"]) == 1


def test_the_embedded_model_is_listed_and_no_cell_is_a_question_mark(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_module, "CONFIGS", catalog_module.BUNDLE_ROOT / "configs")
    catalog_module.catalog.cache_clear()
    assert models.main([]) == 0
    table = capsys.readouterr().out
    (embedded,) = [line for line in table.splitlines() if line.startswith("embedded ")]
    assert "5.9 M    24 MB" in embedded
    assert embedded.endswith("embedded")
    assert "?" not in table


TRANSFORMER = {"num_attention_heads": 24, "attention_head_dim": 128, "num_layers": 19, "num_single_layers": 38}


@pytest.mark.parametrize(
    ("transformer", "name"),
    [
        (TRANSFORMER, "five"),
        (TRANSFORMER | {"num_attention_heads": 2}, ""),
        ({"dim": 3840, "n_layers": 30}, "five"),
        ({"dim": 64, "n_layers": 2}, ""),
        ({"hidden_size": 64, "depth": 2}, ""),
        ({"of_no_known_key": 1}, "five"),
    ],
)
def test_weights_far_smaller_than_the_models_are_not_taken_for_it(
    tmp_path: Path, transformer: dict[str, object], name: str
) -> None:
    five = "about: {parameters: 17, pipeline_class: BigPipeline}\nmodel: {path: maker/five}"
    (catalog_module.CONFIGS / "five.yaml").write_text(five)
    files: Files = {"model_index.json": {"_class_name": "BigPipeline"}, "transformer/config.json": transformer}
    found = recognise(model(tmp_path, files))
    assert found.name == name
    assert ("far smaller than that of five" in found.why) is not bool(name)
    files["model_index.json"]["_name_or_path"] = "maker/five"
    assert recognise(model(tmp_path, files)).name == name


def test_a_copy_of_the_embedded_model_is_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    catalog_module.catalog.cache_clear()
    copy = tmp_path / "renamed"
    files = shutil.ignore_patterns("*.safetensors", "*.png")
    shutil.copytree(EMBEDDED_FOLDER, copy, ignore=files)
    resolved = resolve({"CACHE_DIT_SERVING__MODEL__PATH": str(copy)})
    assert resolved.name == "embedded"
    assert resolved.settings.defaults.num_inference_steps == 28
    assert resolved.settings.limits.sizes == (80, 96, 112)
    config = copy / "transformer/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 3}))
    assert resolve({"CACHE_DIT_SERVING__MODEL__PATH": str(copy)}).name == GENERIC_CONFIG
