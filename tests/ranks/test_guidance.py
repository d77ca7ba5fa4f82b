"""Guidance whose forward passes two ranks share: the pictures and the record of one process."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_dit_serving.config.acceleration import ParallelismSettings
from cache_dit_serving.config.settings import LoraSettings, Settings
from cache_dit_serving.errors import InvalidRequest, LoadError
from cache_dit_serving.media.inputs import InputImage, Inputs
from cache_dit_serving.pipeline.protocol import Loaded, Stopped
from cache_dit_serving.ranks.ranked import RankedRunner
from tests.support import conformance
from tests.support.conformance import settings_of
from tests.support.families import save_family
from tests.support.images import apple
from tests.support.in_process import EMBEDDED, load, unwarmed
from tests.support.loras import with_loras
from tests.support.ranks import CLOSE, Cancelling, Server, draw, drawing, ranks, running, spread

pytestmark = pytest.mark.filterwarnings("default")  # of torch's elastic agent outside of the main thread

GUIDED: dict[str, Any] = {"true_cfg_scale": 4.0, "negative_prompt": "blue"}
MODEL = with_loras(EMBEDDED, LoraSettings(name="mono", path="embedded/monochrome", scale=0.0))


@pytest.fixture(scope="module")
def one() -> Loaded:
    return load(MODEL)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Two ranks that share guidance; each test leaves them ready."""
    with drawing(spread(MODEL, ulysses_size=None, guidance=2)) as running:
        yield running


@pytest.fixture
def two(server: Server) -> Loaded:
    return server.ready()


def same(drawn: Any, expected: Any) -> None:
    """Assert that two outputs and the cache's records of them are the same, to the bit."""
    assert np.array_equal(drawn.media.array, expected.media.array)
    assert drawn.record.stats == expected.record.stats
    assert drawn.record.cache == expected.record.cache


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"speed": "lossless"},
        {"speed": "fast", "num_inference_steps": 12},
        {"cache": {"cache_type": "DBPrune", "residual_diff_threshold": 0.1}},
        {"cache": {"Fn_compute_blocks": 2, "enable_taylorseer": True, "taylorseer_order": 2}},
        {
            "cache": {
                "residual_diff_threshold": 0.3,
                "force_refresh_step_hint": 8,
                "force_refresh_step_policy": "repeat",
            }
        },
        {"cache": {"residual_diff_threshold": 0.3, "max_cached_steps": 3, "max_continuous_cached_steps": 1}},
        {"loras": [{"name": "mono", "scale": 0.6}]},
        {"width": 80, "height": 112},
    ],
    ids=str,
)
def test_two_ranks_that_share_guidance_draw_as_one_process(fields: dict[str, Any], one: Loaded, two: Loaded) -> None:
    expected = draw(one, **GUIDED, **fields)
    same(draw(two, **GUIDED, **fields), expected)
    assert expected.record.passes == 2


def test_without_guidance_the_second_group_rests(one: Loaded, two: Loaded) -> None:
    same(draw(two), draw(one))


def test_a_sibling_shares_guidance_too(one: Loaded, two: Loaded) -> None:
    begin = Inputs(images=(InputImage(apple(96, 96), ""),))
    fields: dict[str, Any] = {**GUIDED, "image_urls": ["a file"], "strength": 0.5, "num_inference_steps": 20}
    same(draw(two, inputs=begin, **fields), draw(one, inputs=begin, **fields))


def test_passes_that_decide_together_are_refused_by_name(two: Loaded) -> None:
    with pytest.raises(InvalidRequest, match=r"parallelism\.guidance") as refused:
        draw(two, **GUIDED, cache={"cfg_diff_compute_separate": False})
    assert refused.value.param == "cache.cfg_diff_compute_separate"


def test_a_cancellation_stops_both_groups(one: Loaded, two: Loaded) -> None:
    watch = Cancelling()
    with pytest.raises(Stopped):
        draw(two, watch, **GUIDED, num_inference_steps=100)
    assert len(watch.steps) < 90
    same(draw(two, **GUIDED), draw(one, **GUIDED))


def test_a_lost_rank_ends_both_groups_and_they_start_anew(server: Server, one: Loaded) -> None:
    generation = server.generate(**GUIDED, num_inference_steps=100)
    running(generation)
    lost = server.pids()[1]
    os.kill(lost, signal.SIGKILL)
    assert "rank 1" in server.lost(generation)
    loaded = server.ready()
    assert lost not in server.pids().values()
    same(draw(loaded, **GUIDED), draw(one, **GUIDED))


def family(name: str, folder: Path, **config: Any) -> Settings:
    """A tiny pipeline, whose transformer's configuration has these values, without arguments that JSON cannot hold."""
    save_family(name, folder)
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    settings = settings_of(name, folder)
    arguments = settings.defaults.pipeline_arguments.items()
    scalars = {key: value for key, value in arguments if isinstance(value, bool | int | float | str)}
    defaults = settings.defaults.model_copy(update={"pipeline_arguments": scalars})
    return unwarmed(settings.model_copy(update={"defaults": defaults}))


def assert_alike(name: str, groups: int, settings: Settings, **fields: Any) -> None:
    """Assert that groups draw as one process, and reuse the same steps."""
    one = load(settings)
    with ranks(spread(settings, ulysses_size=None, guidance=groups)) as several:
        drawn, expected = (conformance.draw(name, each, **fields) for each in (several, one))
    assert np.allclose(drawn.media.array, expected.media.array, rtol=0, atol=CLOSE)
    without_diffs = [
        [each.model_copy(update={"diffs": {}, "cfg_diffs": {}}) for each in sampled.record.stats]
        for sampled in (drawn, expected)
    ]
    assert without_diffs[0] == without_diffs[1]
    assert drawn.record.cache.cached_steps == expected.record.cache.cached_steps > 0


@pytest.mark.parametrize("name", ["Wan", "QwenImage", "StableDiffusion3", "LTX"])
def test_families_share_their_passes_or_their_batch(name: str, tmp_path: Path) -> None:
    scale = "true_cfg_scale" if name == "QwenImage" else "guidance_scale"
    assert_alike(name, 2, family(name, tmp_path), **{scale: 5.0}, negative_prompt="red")


@pytest.mark.parametrize("groups", [2, 3])
def test_ltx2_shares_a_batch_and_its_further_passes(groups: int, tmp_path: Path) -> None:
    passes = {"stg_scale": 1.0, "spatio_temporal_guidance_blocks": [0, 2], "modality_scale": 2.0}
    settings = family("LTX2", tmp_path, perturbed_attn=True)
    settings.defaults.pipeline_arguments["modality_scale"] = 2.0  # without, there is nothing for three to share
    assert_alike("LTX2", groups, settings, guidance_scale=4.0, width=64, height=32, extra_args=passes)


def test_an_output_whose_steps_differ_in_their_passes_is_drawn_without_sharing(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"guidance_scale": 4.0, "negative_prompt": "red", "speed": "lossless"}
    settings = family("Lumina2", tmp_path)
    one = load(settings)
    with ranks(spread(settings, ulysses_size=None, guidance=2)) as two:
        for truncated in (0.5, 1.0):  # the share of the steps that guide
            drawn, expected = (
                conformance.draw("Lumina2", each, **fields, extra_args={"cfg_trunc_ratio": truncated})
                for each in (two, one)
            )
            assert np.array_equal(drawn.media.array, expected.media.array)


def test_a_model_that_makes_one_pass_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="FluxFillPipeline makes one forward pass a step"):
        RankedRunner.start(spread(family("FluxFill", tmp_path), ulysses_size=None, guidance=2), print)


def test_the_tiles_of_the_vae_have_a_degree_of_their_own() -> None:
    large = MODEL.model_copy(update={"limits": MODEL.limits.model_copy(update={"sizes": None, "max_side": 512})})
    tiled = large.model_copy(update={"model": large.model.model_copy(update={"vae_tiling": True})})
    fields: dict[str, Any] = {"num_inference_steps": 3, "width": 192, "height": 160}  # tiles are of 96 px
    one, whole = load(unwarmed(tiled)), load(unwarmed(large))
    with ranks(spread(large, ulysses_size=None, guidance=2, vae_size=2)) as two:
        drawn, expected = (draw(each, **fields).media.array for each in (two, one))
        begin = Inputs(images=(InputImage(apple(160, 192), ""),))
        edit: dict[str, Any] = {**fields, "image_urls": ["a file"], "strength": 0.9}
        edited, as_edited = (draw(each, inputs=begin, **edit).media.array for each in (two, one))
    assert np.allclose(drawn, expected, rtol=0, atol=CLOSE)
    assert np.allclose(edited, as_edited, rtol=0, atol=CLOSE)
    assert not np.array_equal(expected, draw(whole, **fields).media.array)  # there are tiles to share


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"guidance": 2, "vae_size": 4}, "vae_size 4 does not divide the 2 GPUs"),
        ({"guidance": 2, "vae_size": 2, "extra_parallel_modules": ("vae",)}, "leave vae out"),
        ({"vae_size": 2}, "name how many GPUs share what"),
    ],
)
def test_a_degree_that_fits_nothing_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ParallelismSettings(**fields)


def test_ranks_multiply() -> None:
    assert ParallelismSettings(guidance=2, ulysses_size=2, tp_size=2).world_size == 8
