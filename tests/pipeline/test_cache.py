"""cache-dit on one pipeline: each kind of cache, what it holds, what it leaves behind."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.config.settings import ModelSettings, RequestDefaults, Settings
from cache_dit_serving.pipeline.protocol import Loaded
from tests.support.in_process import (
    EMBEDDED,
    STEPS,
    UNCACHED,
    draw,
    held_tensors,
    inside,
    load,
    unwarmed,
    with_cache,
)
from tests.support.pipelines import save_chroma


@pytest.fixture(scope="module")
def whole(uncached: Loaded) -> np.ndarray[Any, Any]:
    """The picture without a cache."""
    return draw(uncached).media.array


@pytest.mark.parametrize(
    "settings",
    [
        {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.4, "max_warmup_steps": 4},
        pytest.param(
            {"Fn_compute_blocks": 2, "Bn_compute_blocks": 1, "residual_diff_threshold": 0.4, "max_warmup_steps": 4},
            marks=pytest.mark.verified,
        ),
        {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.4, "max_warmup_steps": 4, "enable_taylorseer": True},
        pytest.param(
            {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.4, "max_warmup_steps": 4, "enable_foca": True},
            marks=pytest.mark.verified,
        ),
        pytest.param(
            {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.4, "max_warmup_steps": 6, "enable_dmd": True},
            marks=pytest.mark.verified,
        ),
        {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.4, "max_warmup_steps": 4, "cache_type": "DBPrune"},
        {"Fn_compute_blocks": 1, "steps_computation_mask": "fast", "steps_computation_policy": "static"},
        pytest.param(
            {"Fn_compute_blocks": 1, "steps_computation_mask": [1, 1, 1, 1, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1]},
            marks=pytest.mark.verified,
        ),
    ],
    ids=["dbcache", "fnbn", "taylorseer", "foca", "dmd", "dbprune", "mask-name", "mask-list"],
)
def test_every_kind_of_cache_engages_and_repeats_itself(settings: dict[str, Any], whole: np.ndarray[Any, Any]) -> None:
    configured = with_cache(**settings)
    if "steps_computation_mask" in settings:  # a list of 14 fits 14 steps, the warm-up's included
        configured = configured.model_copy(
            update={"defaults": configured.defaults.model_copy(update={"num_inference_steps": STEPS})}
        )
    loaded = load(configured)
    image = draw(loaded)
    assert image.record.cache.engaged
    assert image.record.cache.executed_steps == STEPS
    assert 0 < image.record.cache.cached_steps < STEPS
    assert image.record.cache.computed_steps == STEPS - image.record.cache.cached_steps
    assert np.array_equal(draw(loaded).media.array, image.media.array)
    assert not np.array_equal(whole, image.media.array)


@pytest.mark.parametrize(
    ("settings", "steps", "reason"),
    [
        ({"max_warmup_steps": 8}, 8, "8 steps are no more than the 8 of the warm-up"),
        ({"max_warmup_steps": 2, "residual_diff_threshold": 1e-4}, STEPS, "every residual difference is above"),
        ({"max_cached_steps": 0}, STEPS, "the settings allow no cached step"),
    ],
)
def test_a_cache_that_did_not_engage_says_why(settings: dict[str, Any], steps: int, reason: str) -> None:
    image = draw(load(with_cache(Fn_compute_blocks=1, **settings)), num_inference_steps=steps)
    assert not image.record.cache.engaged
    assert reason in (image.record.cache.reason or "")


def test_flush_frees_what_the_cache_holds_and_changes_no_picture(embedded: Loaded) -> None:
    loaded = embedded
    expected = draw(loaded).media.array
    held = loaded.runner.memory()["cached_activation_bytes"]
    # The residual of 12 blocks over 36 image and 32 text tokens, and what decided on it: at least one of each in fp32.
    assert held >= 36 * 128 * 4
    tensors = [weakref.ref(tensor) for tensor in held_tensors(loaded)]
    assert tensors
    assert loaded.runner.flush().activations == held
    assert not [tensor for tensor in tensors if tensor() is not None], "still held by something"
    assert loaded.runner.memory()["cached_activation_bytes"] == 0
    assert loaded.runner.flush().activations == 0
    assert np.array_equal(draw(loaded).media.array, expected)


@pytest.mark.verified
def test_two_pipelines_of_one_class_do_not_disturb_each_other(whole: np.ndarray[Any, Any]) -> None:
    mild, strong = (
        with_cache(Fn_compute_blocks=1, residual_diff_threshold=threshold, max_warmup_steps=2)
        for threshold in (0.1, 0.6)
    )
    alone = [*(draw(load(settings)).media.array for settings in (mild, strong)), whole]
    together = [load(settings) for settings in (mild, strong, unwarmed(UNCACHED))]
    for _ in range(2):
        for loaded, expected in zip(together, alone, strict=True):
            assert np.array_equal(draw(loaded).media.array, expected)
    # Nor while one is within a generation.
    outer, inner = together[0], together[1]

    def draw_another(done: int) -> None:
        if done == 5:
            assert np.array_equal(draw(inner).media.array, alone[1])

    assert np.array_equal(draw(outer, draw_another).media.array, alone[0])


@pytest.mark.verified
def test_without_a_cache_a_family_is_as_it_was_loaded(tmp_path: Path) -> None:
    from diffusers import ChromaPipeline

    folder = save_chroma(tmp_path)
    bare: Any = ChromaPipeline.from_pretrained(folder, dtype=torch.float32)
    arguments: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 6, "guidance_scale": 4.0}
    generator = torch.Generator("cpu").manual_seed(3)
    expected = bare(prompt="a cat", **arguments, generator=generator, output_type="np").images[0]
    loaded = load(
        Settings(
            model=ModelSettings(path=str(folder), dtype="float32"),
            cache=CacheSettings(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.8),
            defaults=RequestDefaults(width=64, height=64, num_inference_steps=6),
        )
    )
    forward = type(inside(loaded)._part.pipe.transformer).forward
    for _ in range(2):
        cached = draw(loaded, prompt="a cat", **arguments)
        assert cached.record.cache.engaged
        lossless = draw(loaded, prompt="a cat", speed="lossless", **arguments)
        assert np.array_equal(lossless.media.array, expected)
        # cache-dit gives this family's transformer and blocks another forward, and disable_cache leaves it there.
        modules = (inside(loaded)._part.pipe.transformer, *inside(loaded)._part.pipe.transformer.transformer_blocks)
        assert not [module for module in modules if "forward" in vars(module)]
        assert type(inside(loaded)._part.pipe.transformer).forward is forward


@pytest.mark.verified
def test_a_difference_that_is_not_a_number_is_said() -> None:
    loaded = load(unwarmed(EMBEDDED))
    weight = inside(loaded)._part.pipe.transformer.transformer_blocks[0].ff.net[2].weight
    with torch.no_grad():
        weight[0, 0] = float("nan")
    report = draw(loaded).record.cache
    assert (report.engaged, report.reason_code) == (False, "not_a_number")
    assert report.nan_diffs > 0
    assert report.residual_diff is None


def test_what_changes_between_calls_is_no_more_than_needed(uncached: Loaded) -> None:
    draw(uncached, speed="lossless", num_inference_steps=2)
    balanced = CacheSettings(Fn_compute_blocks=1)
    other, prune = balanced.overridden({"residual_diff_threshold": 0.5}), balanced.overridden({"cache_type": "DBPrune"})
    wanted = (None, balanced, balanced, other, prune, prune, None, None, other)
    transitions = [inside(uncached)._cache.prepare(settings, 20, passes=1) for settings in wanted]
    expected = "none exchange none override exchange none exchange none exchange"
    assert transitions == expected.split()


@pytest.mark.verified
def test_a_forced_refresh_keeps_no_activations_beyond_what_flush_frees(embedded: Loaded) -> None:
    cache = {"force_refresh_step_hint": 5, "force_refresh_step_policy": "repeat", "taylorseer_order": 2}
    shape = (1, 36, 128)  # of the image's hidden states: 36 tokens, 128 wide

    def held() -> list[Any]:
        gc.collect()
        return [each for each in gc.get_objects() if type(each) is torch.Tensor and each.shape == shape]

    embedded.runner.flush()
    of_others = len(held())
    draw(embedded, cache=cache, num_inference_steps=18)
    assert len(held()) > of_others
    embedded.runner.flush()
    assert len(held()) == of_others
