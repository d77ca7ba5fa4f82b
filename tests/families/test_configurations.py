"""The shipped configurations: each is found by its model, fits its class, and runs on a tiny pipeline of that class."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
from diffusers import UniPCMultistepScheduler

from cache_dit_serving.config.catalog import CatalogEntry, catalog, recognise
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.config.settings import Limits, Settings
from cache_dit_serving.config.variables import CONFIG_VARIABLE
from tests.support.conformance import draw, settings_of
from tests.support.families import ENTRIES, save_family
from tests.support.in_process import load
from tests.support.loras import write_lora
from tools.models_table import names_of

# Tiny weights and old families warn of much, none of it this project's.
pytestmark = pytest.mark.filterwarnings("default")
OF_A_MODEL = [entry for entry in catalog() if entry.about.pipeline_class]
TINY = ("width", "height", "num_frames", "max_sequence_length", "audio_length_s", "num_inference_steps")


def tiny_of(entry: CatalogEntry) -> str:
    """The entry of `families.json` for a configuration."""
    cls = entry.model.pipeline_class or entry.about.pipeline_class
    second = bool(entry.about.components.get("transformer_2"))
    return next(
        name
        for name, tiny in ENTRIES.items()
        if tiny["class"] == cls and (tiny["components"].get("transformer_2") is not None) is second
    )


def runs_here(entry: CatalogEntry) -> bool:
    return tiny_of(entry) not in names_of("apart")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: tmp_path_factory.mktemp(name) for name in {tiny_of(entry) for entry in OF_A_MODEL}}


def small(entry: CatalogEntry, folder: Path) -> Settings:
    """A configuration with what tiny weights need in the place of its sizes and numbers of steps and blocks."""
    name = tiny_of(entry)
    if not any(folder.iterdir()):
        save_family(name, folder)
        if name.startswith("Wan"):  # the models' own, which has a flow_shift to set
            wan = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
            wan.save_pretrained(folder / "scheduler")
            index = json.loads((folder / "model_index.json").read_text())
            index["scheduler"] = ["diffusers", "UniPCMultistepScheduler"]
            (folder / "model_index.json").write_text(json.dumps(index))
    settings, tiny = load_settings({CONFIG_VARIABLE: entry.name}), settings_of(name, folder)
    defaults = {key: getattr(tiny.defaults, key) for key in TINY}
    # An empty prompt has no token at all in the tiny tokenizer.
    defaults["negative_prompt"] = settings.defaults.negative_prompt or tiny.defaults.negative_prompt
    defaults["pipeline_arguments"] = tiny.defaults.pipeline_arguments | settings.defaults.pipeline_arguments
    loras = []
    for lora in settings.model.loras:
        file = folder.with_name(f"{entry.name}.safetensors")
        write_lora(diffusers.DiffusionPipeline.from_pretrained(folder), file)
        loras.append(lora.model_copy(update={"path": str(file), "weight_name": None}))
    cache = settings.cache and settings.cache.model_copy(update={"Fn_compute_blocks": 1, "Bn_compute_blocks": 0})
    return settings.model_copy(
        update={
            "model": settings.model.model_copy(
                update={"path": str(folder), "dtype": tiny.model.dtype, "loras": tuple(loras)}
            ),
            "cache": cache,
            "defaults": settings.defaults.model_copy(update=defaults),
            "limits": Limits(min_side=4),
            "server": settings.server.model_copy(update={"warm_up": False}),
        }
    )


@pytest.fixture(scope="module")
def run() -> set[str]:
    """Settings on tiny weights that have run: some configurations of a class differ in their sizes alone."""
    return set()


@pytest.mark.verified
@pytest.mark.parametrize("entry", [entry for entry in OF_A_MODEL if runs_here(entry)], ids=lambda entry: entry.name)
def test_a_configuration_runs_on_its_class(entry: CatalogEntry, folders: dict[str, Path], run: set[str]) -> None:
    settings = small(entry, folders[tiny_of(entry)])
    served = repr(settings.model_copy(update={"about": None}))
    if served not in run:
        assert np.isfinite(draw(tiny_of(entry), load(settings)).media.array).all()
        run.add(served)


@pytest.mark.parametrize("entry", OF_A_MODEL, ids=lambda entry: entry.name)
def test_a_configurations_arguments_and_size_are_its_classs(entry: CatalogEntry) -> None:
    settings = load_settings({CONFIG_VARIABLE: entry.name})
    assert entry.about.pipeline_class is not None
    call = inspect.signature(getattr(diffusers, entry.about.pipeline_class).__call__).parameters
    assert settings.defaults.pipeline_arguments.keys() <= call.keys()
    assert settings.defaults.guidance_scale is None or "guidance_scale" in call
    assert settings.defaults.true_cfg_scale is None or "true_cfg_scale" in call


@pytest.mark.parametrize("entry", OF_A_MODEL, ids=lambda entry: entry.name)
def test_a_configurations_cache_leaves_steps_to_reuse(entry: CatalogEntry) -> None:
    settings = load_settings({CONFIG_VARIABLE: entry.name})
    steps = settings.defaults.num_inference_steps
    if settings.cache is not None and steps is not None:
        assert settings.cache.cannot_engage(steps, passes=1) is None


@pytest.mark.parametrize(
    "entry", [entry for entry in OF_A_MODEL if entry.about.recognised], ids=lambda entry: entry.name
)
def test_a_configuration_is_found_by_its_hub_id_and_by_a_folder_like_its_models(
    entry: CatalogEntry, tmp_path: Path
) -> None:
    assert recognise(entry.model.path).name == entry.name
    index: dict[str, object] = {"_class_name": entry.about.pipeline_class}
    for component, facts in entry.about.components.items():
        if isinstance(facts, bool):
            index[component] = ["diffusers", "X"] if facts else [None, None]
        elif component == "pipeline":
            index |= facts
        else:
            file = tmp_path / component / ("scheduler_config.json" if component == "scheduler" else "config.json")
            file.parent.mkdir()
            file.write_text(json.dumps(facts))
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert recognise(str(tmp_path)).name == entry.name
