"""Class-conditional pictures: a tiny DiT with random weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.config.settings import ModelSettings, ServerSettings, Settings
from cache_dit_serving.engine.capabilities import capabilities_of
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.jobs.rates import Rates
from cache_dit_serving.pipeline.protocol import Loaded, Unwatched
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.planned import Planned
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.planning.tasks import Task
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.families import save_family
from tests.support.in_process import load

NAMES = {"0": "tench, Tinca tinca", "1": "goldfish"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    saved = save_family("DiT", tmp_path_factory.mktemp("dit") / "DiT")
    index = saved / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": NAMES}))
    return saved


@pytest.fixture(scope="module")
def dit(folder: Path) -> Loaded:
    return load(
        Settings(
            model=ModelSettings(path=str(folder), dtype="float32"),
            cache=CacheSettings(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.9),
            server=ServerSettings(warm_up=False),
        )
    )


def planned(dit: Loaded, **fields: Any) -> Planned:
    return plan(resolve(GenerateRequest.model_validate({"seed": 3, "num_inference_steps": 6} | fields), dit.model))


def test_a_class_is_drawn_as_diffusers_draws_it_and_reuses_steps(dit: Loaded, folder: Path) -> None:
    assert dit.model.tasks == [Task.CLASS_CONDITIONAL]
    pipe: Any = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    expected = pipe([1], num_inference_steps=6, generator=torch.Generator("cpu").manual_seed(3), output_type="np")
    uncached, cached = (
        dit.runner.sample(replace(planned(dit, class_label=1, **fields).call, keep_floats=True), Unwatched())
        for fields in ({"speed": "lossless"}, {})
    )
    assert np.array_equal(uncached.media.array, expected.images[0])
    assert cached.record.cache.engaged
    assert not np.array_equal(cached.media.array, uncached.media.array)


def test_a_class_has_a_number_and_names(dit: Loaded) -> None:
    result = planned(dit, class_label="Tinca tinca")
    assert result.call.arguments["class_labels"] == [0]
    assert result.parameters(result.call)["class_label"] == 0
    assert planned(dit, class_label="goldfish").call.arguments["class_labels"] == [1]
    assert result.call.pixels == 16 * 16
    described = capabilities_of(dit, Rates()).fields["class_label"]
    assert described["anyOf"] == [
        {"type": "integer", "minimum": 0, "maximum": 999},
        {"type": "string", "enum": ["Tinca tinca", "goldfish", "tench"]},
    ]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({}, "class_label", "is missing; say which class"),
        ({"class_label": 1000}, "class_label", "0 to 999"),
        ({"class_label": "goldfisch"}, "class_label", "the nearest are goldfish"),
        ({"class_label": "x"}, "class_label", "GET /capabilities lists them"),
        ({"class_label": 1, "prompt": "a goldfish"}, "prompt", "does not take prompt; it takes: class_label"),
        ({"class_label": 1, "width": 64}, "width", "does not take width"),
    ],
)
def test_what_is_no_class_is_refused(dit: Loaded, fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        planned(dit, **fields)
    assert refused.value.param == param
