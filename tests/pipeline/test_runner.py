"""One pipeline in this process: pictures by seed, steps, and the pairing of forward passes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.config.settings import ModelSettings, RequestDefaults, Settings
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from cache_dit_serving.pipeline.memory import MemoryUse
from cache_dit_serving.pipeline.protocol import Loaded, Stopped, TakePreview, Unwatched
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support import conformance
from tests.support.families import save_family
from tests.support.in_process import (
    PIXART,
    STEPS,
    draw,
    inside,
    load,
    tiny_wan,
    unwarmed,
    with_cache,
)
from tests.support.pipelines import save_chroma, save_pixart


def test_the_embedded_model_draws_a_red_apple_on_blue(embedded: Loaded) -> None:
    pixels = draw(embedded, num_inference_steps=28).media.array
    assert pixels.shape == (96, 96, 3)
    corner, centre = pixels[4:12, 4:12].mean(axis=(0, 1)), pixels[44:60, 40:56].mean(axis=(0, 1))
    assert corner.argmax() == 2, f"the background is not blue: {corner}"
    assert centre.argmax() == 0, f"the apple is not red: {centre}"


def test_a_seed_is_one_picture_whatever_ran_before(embedded: Loaded) -> None:
    first = draw(embedded).media.array
    draw(embedded, seed=9, width=80, num_inference_steps=28)
    draw(embedded, true_cfg_scale=3.0, negative_prompt="a cat", num_inference_steps=20)
    assert np.array_equal(draw(embedded).media.array, first)
    assert not np.array_equal(draw(embedded, seed=4).media.array, first)


def test_a_stopped_generation_leaves_nothing_behind(embedded: Loaded) -> None:
    expected = draw(embedded).media.array

    class Stop(Exception):
        pass

    def stop_at_ten(done: int) -> None:
        if done == 10:
            raise Stop

    with pytest.raises(Stop):
        draw(embedded, stop_at_ten)
    assert np.array_equal(draw(embedded).media.array, expected)


class CancelledAt:
    """Watch that is cancelled once it is asked for the n-th time."""

    def __init__(self, most: float) -> None:
        self.most = most
        self.asked = self.steps = 0
        self.before = 0
        """Times that it was asked before the first step had ended."""

    @property
    def cancelled(self) -> bool:
        self.asked += 1
        self.before += not self.steps
        return self.asked >= self.most

    def progress(self, done: int, cached: int) -> None:
        self.steps = done

    def preview(self, done: int, take: TakePreview) -> None:
        pass


@pytest.mark.parametrize("name", ["embedded", "Wan"])
def test_a_cancelled_generation_stops_before_and_after_the_steps_too_and_leaves_nothing_behind(
    name: str, embedded: Loaded, tmp_path: Path
) -> None:
    loaded = embedded if name == "embedded" else load(unwarmed(tiny_wan(tmp_path)))
    runner = loaded.runner
    request = GenerateRequest.model_validate({"prompt": "a cat", "seed": 3, "num_inference_steps": 6})
    call = plan(resolve(request, loaded.model)).call
    runner.flush()  # or the prompt's embeddings are known
    whole = CancelledAt(math.inf)
    expected = runner.sample(call, whole).media.array
    assert whole.before > 2
    assert whole.asked - whole.before > 6 + 10
    for stopped_at, steps in ((whole.before // 2, 0), ((whole.before + 6 + whole.asked) // 2, 6)):
        runner.flush()
        watch = CancelledAt(stopped_at)
        with pytest.raises(Stopped):
            runner.sample(call, watch)
        assert (watch.steps, watch.asked) == (steps, stopped_at)
        vae = inside(loaded)._part.pipe.vae
        assert not any(each is not None for each in getattr(vae, "_feat_map", ()))
        assert np.array_equal(runner.sample(call, Unwatched()).media.array, expected)


def test_without_a_cache_the_pictures_are_the_bare_pipelines(embedded: Loaded, uncached: Loaded) -> None:
    from diffusers import FluxPipeline

    draw(embedded)  # a cached pipeline of the same class in the same process must not reach the bare one
    bare: Any = FluxPipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    expected = bare(
        prompt="a red apple on a blue background",
        width=96,
        height=96,
        num_inference_steps=STEPS,
        max_sequence_length=32,
        generator=torch.Generator("cpu").manual_seed(3),
        output_type="np",
    ).images[0]
    image = draw(uncached)
    assert np.array_equal(image.media.array, expected)
    assert (image.record.cache.enabled, image.record.cache.reason) == (False, "off")


@pytest.fixture(scope="module")
def often_cached() -> Loaded:
    """The embedded model with a cache that reuses much."""
    return load(with_cache(Fn_compute_blocks=1, residual_diff_threshold=0.4, max_warmup_steps=4))


def test_guidance_with_a_second_pass_is_paired_request_by_request(often_cached: Loaded) -> None:
    loaded = often_cached
    plain = draw(loaded)
    guided = draw(loaded, true_cfg_scale=3.0, negative_prompt="a cat")
    assert (plain.record.cache.executed_steps, guided.record.cache.executed_steps) == (STEPS, STEPS)
    assert plain.record.stats[0].cfg_diffs == {}
    assert set(guided.record.stats[0].cfg_diffs) == set(guided.record.stats[0].diffs) != set()
    assert np.array_equal(draw(loaded).media.array, plain.media.array)


def test_steps_are_counted_and_stopped_without_a_step_callback(tmp_path: Path) -> None:
    loaded = load(PIXART.model_copy(update={"model": ModelSettings(path=str(save_pixart(tmp_path)), dtype="float32")}))
    assert not loaded.model.traits.takes("callback_on_step_end")
    steps: list[int] = []
    image = draw(loaded, steps.append, num_inference_steps=6)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert image.record.cache.executed_steps == 6

    def stop(done: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        draw(loaded, stop, num_inference_steps=6)
    assert np.array_equal(draw(loaded, num_inference_steps=6).media.array, image.media.array)


@pytest.mark.verified
def test_a_wrong_pairing_is_noticed_and_drawn_again(often_cached: Loaded) -> None:
    loaded = often_cached
    cases: list[dict[str, Any]] = [{}, {"true_cfg_scale": 3.0, "negative_prompt": "a cat"}]
    for fields in cases:
        expected = draw(loaded, **fields)
        request = GenerateRequest.model_validate(
            {"prompt": "a red apple on a blue background", "seed": 3, "num_inference_steps": STEPS} | fields
        )
        call = plan(resolve(request, loaded.model)).call
        wrong = replace(call, passes=3 - call.passes, keep_floats=True)
        image = loaded.runner.sample(wrong, Unwatched())
        assert image.record.cache.executed_steps == STEPS
        assert (expected.record.cache.redrawn, image.record.cache.redrawn) == (0, 1)
        assert np.array_equal(image.media.array, expected.media.array)


@pytest.mark.verified
def test_a_wrong_pairing_of_passes_that_no_comparison_takes_is_drawn_again(tmp_path: Path) -> None:
    loaded = load(conformance.settings_of("Cosmos3Omni", save_family("Cosmos3Omni", tmp_path)))
    fields = {"guidance_scale": 4.0, "negative_prompt": "much longer than the prompt " * 4}
    reusing_nothing = conformance.draw("Cosmos3Omni", loaded, **fields, cache={"residual_diff_threshold": 0.0})
    plain = conformance.draw("Cosmos3Omni", loaded, **fields, speed="lossless")
    assert np.array_equal(reusing_nothing.media.array, plain.media.array)
    report = conformance.draw("Cosmos3Omni", loaded, **fields).record.cache
    assert (report.redrawn, report.executed_steps) == (1, report.steps)
    assert report.cached_steps > 0


@pytest.mark.verified
def test_a_scheduler_that_evaluates_twice_is_not_taken_for_two_passes(tmp_path: Path) -> None:
    from diffusers import HeunDiscreteScheduler

    folder = save_pixart(tmp_path)
    HeunDiscreteScheduler().save_pretrained(folder / "scheduler")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("DPMSolverMultistepScheduler", "HeunDiscreteScheduler"))
    loaded = load(PIXART.model_copy(update={"model": ModelSettings(path=str(folder), dtype="float32")}))
    image = draw(loaded, num_inference_steps=10)
    assert image.record.cache.steps == image.record.cache.executed_steps == 19
    assert image.record.stats[0].cfg_diffs == {}


def test_a_pairing_that_the_configuration_says_wrong_is_put_right_at_load(tmp_path: Path) -> None:
    model = ModelSettings(path=str(save_pixart(tmp_path)), dtype="float32")
    assert PIXART.cache is not None
    cache = PIXART.cache.model_copy(update={"enable_separate_cfg": True})
    loaded = load(PIXART.model_copy(update={"model": model, "cache": cache}))
    assert loaded.model.traits.guidance.guided_passes == 1
    image = draw(loaded, num_inference_steps=6)
    assert (image.record.cache.executed_steps, image.record.cache.redrawn) == (6, 0)


@pytest.mark.verified
def test_a_family_that_guides_in_a_second_pass_is_paired_by_its_scale(tmp_path: Path) -> None:
    loaded = load(
        Settings(
            model=ModelSettings(path=str(save_chroma(tmp_path)), dtype="float32"),
            cache=CacheSettings(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.8),
            defaults=RequestDefaults(width=64, height=64, num_inference_steps=6),
        )
    )
    for scale, passes in ((4.0, 2), (1.0, 1), (4.0, 2)):
        image = draw(loaded, guidance_scale=scale, num_inference_steps=6)
        assert image.record.cache.executed_steps == 6
        assert bool(image.record.stats[0].cfg_diffs) == (passes == 2)


def test_stages_are_timed_by_their_kernels_and_no_step_waits(monkeypatch: pytest.MonkeyPatch, uncached: Loaded) -> None:
    """A GPU cannot be had: its queue is stood for by the calls that wait for it."""
    seen: list[int | str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: seen.append("waited"))
    monkeypatch.setattr(inside(uncached), "_device", torch.device("mps"))
    monkeypatch.setattr(inside(uncached), "_memory_use", MemoryUse(torch.device("cpu")))
    draw(uncached, seen.append, num_inference_steps=3)
    assert seen == ["waited", 1, 2, "waited", 3, "waited"]
