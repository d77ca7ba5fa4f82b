"""Text-to-video on real classes with tiny weights: what the server makes is what diffusers makes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.config.settings import Limits, ModelSettings, RequestDefaults, ServerSettings, Settings
from cache_dit_serving.media.values import Clip
from cache_dit_serving.pipeline.protocol import Drawn, Loaded, Unwatched
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.tasks import Task
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.families import ENTRIES, save_family
from tests.support.in_process import load

CLASSES = ("Wan", "Wan-2.2", "LTX", "HunyuanVideo", "Mochi", "CogVideoX")


def arguments(name: str) -> dict[str, Any]:
    call: dict[str, Any] = dict(ENTRIES[name]["call"])
    if name == "CogVideoX":
        call["num_frames"] = 9  # of 4k + 1, as all its numbers of frames
    return call


@pytest.fixture(scope="module", params=CLASSES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    name: str = request.param
    return name, save_family(name, tmp_path_factory.mktemp("families") / name)


def load_family(folder: Path, call: dict[str, Any]) -> Loaded:
    settings = Settings(
        model=ModelSettings(path=str(folder), dtype="float32"),
        cache=CacheSettings(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.9),
        defaults=RequestDefaults(
            **{key: call[key] for key in ("width", "height", "num_frames")},
            max_sequence_length=call["max_sequence_length"],
        ),
        limits=Limits(min_side=16),
        server=ServerSettings(warm_up=False),
    )
    return load(settings)


def draw(loaded: Loaded, call: dict[str, Any], **fields: Any) -> Drawn:
    asked = {
        key: call[key] for key in ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale") if key in call
    }
    planned = plan(GenerateRequest.model_validate(asked | {"seed": 3} | fields), loaded.model)
    return loaded.runner.sample(planned, 0, Unwatched())


@pytest.mark.filterwarnings("ignore:In CPU autocast")  # Mochi, which asks for it in float32 too
def test_a_family_makes_the_clips_of_diffusers_and_reuses_steps(family: tuple[str, Path]) -> None:
    name, folder = family
    call = {key: value for key, value in arguments(name).items() if not isinstance(value, dict)}
    pipe: Any = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    taken = inspect.signature(type(pipe).__call__).parameters
    plain = {key: value for key, value in call.items() if key in taken}
    expected = pipe(**plain, generator=torch.Generator("cpu").manual_seed(3)).frames[0]

    loaded = load_family(folder, call)
    assert loaded.model.traits.tasks == {Task.TEXT_TO_VIDEO}
    uncached = draw(loaded, call, speed="lossless")
    assert isinstance(uncached.media, Clip)
    assert np.array_equal(uncached.media.array, expected)
    assert uncached.media.array.shape == (call["num_frames"], call["height"], call["width"], 3)

    cached = draw(loaded, call)
    assert cached.record.cache.engaged
    assert not cached.record.cache.redrawn
    assert not np.array_equal(cached.media.array, expected)
    assert np.array_equal(draw(loaded, call).media.array, cached.media.array)
    assert np.array_equal(draw(loaded, call, speed="lossless").media.array, expected)


def test_wan_2_2_shows_what_each_of_its_transformers_reused(tmp_path: Path) -> None:
    call = arguments("Wan-2.2")
    loaded = load_family(save_family("Wan-2.2", tmp_path / "model"), call)
    transformers = {stats.transformer for stats in draw(loaded, call).record.stats}
    assert transformers == {"transformer", "transformer_2"}
