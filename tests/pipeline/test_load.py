"""Loading: what the settings of a model change in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache_dit_serving.config.settings import ModelSettings, Settings
from cache_dit_serving.errors import LoadError
from cache_dit_serving.pipeline.load import load_pipeline
from tests.support.families import save_family


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
