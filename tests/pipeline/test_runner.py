"""One pipeline in this process: pictures by seed, the cache on each request, what cannot be loaded."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache_dit_serving.api.model_info import model_info
from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.config.settings import Limits, ModelSettings, RequestDefaults, Settings
from cache_dit_serving.errors import InvalidRequest, LoadError
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from cache_dit_serving.pipeline.protocol import Drawn, Loaded, Unwatched
from cache_dit_serving.pipeline.runner import PipelineRunner
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.pipelines import save_chroma, save_flux_of_nan, save_flux_with_guidance, save_pixart

# Without the pictures that it draws at each speed when it starts.
EMBEDDED = load_settings({"CACHE_DIT_SERVING__SPEEDS__WARM_UP": "false"})
STEPS = 14
PIXART = Settings(
    cache=CacheSettings(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.8),
    defaults=RequestDefaults(
        width=64, height=64, num_inference_steps=6, pipeline_arguments={"use_resolution_binning": False}
    ),
)
UNCACHED = EMBEDDED.model_copy(update={"cache": None})


def with_cache(**fields: Any) -> Settings:
    return EMBEDDED.model_copy(update={"cache": CacheSettings(**fields)})


class Watch:
    """Calls `on_step` after each step, which may raise."""

    cancelled = False

    def __init__(self, on_step: Callable[[int], None]) -> None:
        self.progress = on_step


def load(settings: Settings) -> Loaded:
    return assemble(settings, lambda what: None)


def inside(loaded: Loaded) -> PipelineRunner:
    assert isinstance(loaded.runner, PipelineRunner)
    return loaded.runner


def draw(loaded: Loaded, on_step: Callable[[int], None] = lambda done: None, **fields: Any) -> Drawn:
    defaults = {"prompt": "a red apple on a blue background", "seed": 3, "num_inference_steps": STEPS}
    call = plan(GenerateRequest.model_validate(defaults | fields), loaded.model)
    return loaded.runner.sample(call, 0, Watch(on_step))


def held_tensors(loaded: Loaded) -> list[Any]:
    contexts = inside(loaded)._cache._manager_contexts()
    return [value for context in contexts.values() for value in context.buffers.values() if hasattr(value, "shape")]


def test_the_embedded_model_draws_a_red_apple_on_blue() -> None:
    pixels = draw(load(EMBEDDED), num_inference_steps=28).media.array
    assert pixels.shape == (96, 96, 3)
    corner, centre = pixels[4:12, 4:12].mean(axis=(0, 1)), pixels[44:60, 40:56].mean(axis=(0, 1))
    assert corner.argmax() == 2, f"the background is not blue: {corner}"
    assert centre.argmax() == 0, f"the apple is not red: {centre}"


def test_a_seed_is_one_picture_whatever_ran_before() -> None:
    loaded = load(EMBEDDED)
    first = draw(loaded).media.array
    draw(loaded, seed=9, width=80, num_inference_steps=28)
    draw(loaded, true_cfg_scale=3.0, negative_prompt="a cat", num_inference_steps=20)
    assert np.array_equal(draw(loaded).media.array, first)
    assert not np.array_equal(draw(loaded, seed=4).media.array, first)


def test_a_stopped_generation_leaves_nothing_behind() -> None:
    loaded = load(EMBEDDED)
    expected = draw(loaded).media.array

    class Stop(Exception):
        pass

    def stop_at_ten(done: int) -> None:
        if done == 10:
            raise Stop

    with pytest.raises(Stop):
        draw(loaded, stop_at_ten)
    assert np.array_equal(draw(loaded).media.array, expected)


def test_without_a_cache_the_pictures_are_the_bare_pipelines() -> None:
    import torch
    from diffusers import FluxPipeline

    load(EMBEDDED)  # a cached pipeline of the same class in the same process must not reach the bare one
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
    image = draw(load(UNCACHED))
    assert np.array_equal(image.media.array, expected)
    assert (image.record.cache.enabled, image.record.cache.reason) == (False, "off")


@pytest.mark.parametrize(
    "settings",
    [
        {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.4, "max_warmup_steps": 4},
        {"Fn_compute_blocks": 2, "Bn_compute_blocks": 1, "residual_diff_threshold": 0.4, "max_warmup_steps": 4},
        {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.4, "max_warmup_steps": 4, "enable_taylorseer": True},
        {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.4, "max_warmup_steps": 4, "enable_foca": True},
        {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.4, "max_warmup_steps": 6, "enable_dmd": True},
        {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.4, "max_warmup_steps": 4, "cache_type": "DBPrune"},
        {"Fn_compute_blocks": 1, "steps_computation_mask": "fast", "steps_computation_policy": "static"},
        {"Fn_compute_blocks": 1, "steps_computation_mask": [1, 1, 1, 1, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1]},
    ],
    ids=["dbcache", "fnbn", "taylorseer", "foca", "dmd", "dbprune", "mask-name", "mask-list"],
)
def test_every_kind_of_cache_engages_and_repeats_itself(settings: dict[str, Any]) -> None:
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
    assert not np.array_equal(draw(load(UNCACHED)).media.array, image.media.array)


def test_guidance_with_a_second_pass_is_paired_request_by_request() -> None:
    loaded = load(with_cache(Fn_compute_blocks=1, residual_diff_threshold=0.4, max_warmup_steps=4))
    plain = draw(loaded)
    guided = draw(loaded, true_cfg_scale=3.0, negative_prompt="a cat")
    assert (plain.record.cache.executed_steps, guided.record.cache.executed_steps) == (STEPS, STEPS)
    assert plain.record.stats[0].cfg_diffs == {}
    assert set(guided.record.stats[0].cfg_diffs) == set(guided.record.stats[0].diffs) != set()
    assert np.array_equal(draw(loaded).media.array, plain.media.array)


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


def test_flush_frees_what_the_cache_holds_and_changes_no_picture() -> None:
    loaded = load(EMBEDDED)
    expected = draw(loaded).media.array
    held = loaded.runner.memory()["cached_activation_bytes"]
    # The residual of 12 blocks over 36 image and 32 text tokens, and what decided on it: at least one of each in fp32.
    assert held >= 36 * 128 * 4
    tensors = [weakref.ref(tensor) for tensor in held_tensors(loaded)]
    assert tensors
    assert loaded.runner.flush() == held
    assert not [tensor for tensor in tensors if tensor() is not None], "still held by something"
    assert loaded.runner.memory()["cached_activation_bytes"] == 0
    assert loaded.runner.flush() == 0
    assert np.array_equal(draw(loaded).media.array, expected)


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


def test_a_wrong_pairing_is_noticed_and_drawn_again() -> None:
    loaded = load(with_cache(Fn_compute_blocks=1, residual_diff_threshold=0.4, max_warmup_steps=4))
    cases: list[dict[str, Any]] = [{}, {"true_cfg_scale": 3.0, "negative_prompt": "a cat"}]
    for fields in cases:
        expected = draw(loaded, **fields)
        request = GenerateRequest.model_validate(
            {"prompt": "a red apple on a blue background", "seed": 3, "num_inference_steps": STEPS} | fields
        )
        call = plan(request, loaded.model)
        wrong = replace(call, passes=3 - call.passes)
        image = loaded.runner.sample(wrong, 0, Unwatched())
        assert image.record.cache.executed_steps == STEPS
        assert (expected.record.cache.redrawn, image.record.cache.redrawn) == (0, 1)
        assert np.array_equal(image.media.array, expected.media.array)


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
    assert not loaded.model.traits.guidance.separate_cfg
    image = draw(loaded, num_inference_steps=6)
    assert (image.record.cache.executed_steps, image.record.cache.redrawn) == (6, 0)


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


def test_guidance_scale_is_taken_only_by_weights_that_have_it(tmp_path: Path) -> None:
    assert "guidance_scale" not in model_info(load(EMBEDDED)).accepted_fields
    guided = Settings(
        model=ModelSettings(path=str(save_flux_with_guidance(tmp_path)), dtype="float32"), defaults=EMBEDDED.defaults
    )
    loaded = load(guided)
    assert "guidance_scale" in model_info(loaded).accepted_fields
    weak, strong = (draw(loaded, guidance_scale=scale).media.array for scale in (1.0, 9.0))
    assert not np.array_equal(weak, strong)


@pytest.mark.parametrize(
    ("model", "cache", "defaults", "words"),
    [
        ({"path": "/nowhere/at/all"}, None, {}, "neither a folder"),
        ({"path": "tests"}, None, {}, "no model_index.json"),
        ({"device": "cuda"}, None, {}, "'cuda' is not available"),
        ({"device": "nonsense"}, None, {}, "'nonsense' is not available"),
        ({"pipeline_class": "NoSuchPipeline"}, None, {}, "no pipeline class 'NoSuchPipeline'"),
        ({"pipeline_class": "FluxImg2ImgPipeline"}, None, {}, "is for img2img"),
        ({}, {"Fn_compute_blocks": 13}, {}, "more than the 12 blocks of FluxTransformer2DModel.transformer_blocks"),
        ({}, {"Fn_compute_blocks": 8, "Bn_compute_blocks": 5}, {}, "more than the 12 blocks"),
        ({}, None, {"pipeline_arguments": {"no_such_argument": 1}}, "does not take 'no_such_argument'"),
        ({}, None, {"pipeline_arguments": {"generator": 1}}, "set by requests or the server"),
        ({}, None, {"num_inference_steps": 500}, "more than the 100"),
    ],
)
def test_what_cannot_be_served_is_said_at_load(
    model: dict[str, Any], cache: dict[str, Any] | None, defaults: dict[str, Any], words: str
) -> None:
    settings = Settings(
        model=EMBEDDED.model.model_copy(update=model),
        cache=CacheSettings(**cache) if cache else None,
        defaults=EMBEDDED.defaults.model_copy(update=defaults),
        limits=Limits(max_num_inference_steps=100),
    )
    with pytest.raises(LoadError, match=words):
        load(settings)


def test_a_models_public_name_does_not_say_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cache_dit_serving.pipeline.load import public_name

    (tmp_path / "customers" / "secret").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("customers/secret") == public_name(str(tmp_path / "customers" / "secret")) == "secret"
    assert public_name("Qwen/Qwen-Image") == "Qwen/Qwen-Image"
    assert public_name("embedded") == "embedded"


def test_an_attention_backend_that_cannot_run_is_refused_with_those_that_can() -> None:
    for name in ("flash", "_npu_fia", "nonsense"):
        with pytest.raises(LoadError, match="usable here: native"):
            load(EMBEDDED.model_copy(update={"attention_backend": name}))


def test_weights_that_draw_no_numbers_fail_the_load(tmp_path: Path) -> None:
    settings = EMBEDDED.model_copy(
        update={"model": ModelSettings(path=str(save_flux_of_nan(tmp_path)), dtype="float32")}
    )
    with pytest.raises(LoadError, match="not numbers"):
        load(settings)


def test_two_pipelines_of_one_class_do_not_disturb_each_other() -> None:
    mild, strong = (
        with_cache(Fn_compute_blocks=1, residual_diff_threshold=threshold, max_warmup_steps=2)
        for threshold in (0.1, 0.6)
    )
    alone = [draw(load(settings)).media.array for settings in (mild, strong, UNCACHED)]
    together = [load(settings) for settings in (mild, strong, UNCACHED)]
    for _ in range(2):
        for loaded, expected in zip(together, alone, strict=True):
            assert np.array_equal(draw(loaded).media.array, expected)
    # Nor while one is within a generation.
    outer, inner = together[0], together[1]

    def draw_another(done: int) -> None:
        if done == 5:
            assert np.array_equal(draw(inner).media.array, alone[1])

    assert np.array_equal(draw(outer, draw_another).media.array, alone[0])


def test_without_a_cache_a_family_is_as_it_was_loaded(tmp_path: Path) -> None:
    import torch
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
    forward = type(inside(loaded)._pipe.transformer).forward
    for _ in range(2):
        cached = draw(loaded, prompt="a cat", **arguments)
        assert cached.record.cache.engaged
        lossless = draw(loaded, prompt="a cat", speed="lossless", **arguments)
        assert np.array_equal(lossless.media.array, expected)
        # cache-dit gives this family's transformer and blocks another forward, and disable_cache leaves it there.
        modules = (inside(loaded)._pipe.transformer, *inside(loaded)._pipe.transformer.transformer_blocks)
        assert not [module for module in modules if "forward" in vars(module)]
        assert type(inside(loaded)._pipe.transformer).forward is forward


def test_an_enable_that_fails_leaves_the_model_uncached_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import cache_dit

    expected = draw(load(UNCACHED)).media.array
    enable_cache = cache_dit.enable_cache

    def fails_half_way(pipe: Any, **settings: Any) -> None:
        enable_cache(pipe, **settings)
        raise AssertionError("secret detail")

    monkeypatch.setattr(cache_dit, "enable_cache", fails_half_way)
    loaded = load(EMBEDDED)
    image = draw(loaded)
    assert np.array_equal(image.media.array, expected)
    assert (image.record.cache.enabled, image.record.cache.reason_code) == (False, "unsupported")
    assert "could not be enabled on FluxPipeline" in (image.record.cache.reason or "")
    assert (model_info(loaded).cache or {})["running"] is False
    required = EMBEDDED.server.model_copy(update={"require_cache": True})
    with pytest.raises(LoadError, match="require_cache"):
        load(EMBEDDED.model_copy(update={"server": required}))


def test_a_type_that_fails_in_its_forward_pass_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from cache_dit.caching.cache_contexts.prune_manager import PrunedContextManager

    expected = draw(load(EMBEDDED)).media.array

    def fails(*args: Any, **kwargs: Any) -> bool:
        raise ValueError("secret detail")

    monkeypatch.setattr(PrunedContextManager, "can_prune", fails)
    loaded = load(EMBEDDED)
    assert list(loaded.model.speeds.support.refusals) == ["DBPrune"]
    assert np.array_equal(draw(loaded).media.array, expected)
    with pytest.raises(InvalidRequest, match="fails in the forward pass of FluxPipeline") as raised:
        draw(loaded, cache={"cache_type": "DBPrune"})
    assert raised.value.param == "cache.cache_type"


def test_a_difference_that_is_not_a_number_is_said() -> None:
    import torch

    loaded = load(EMBEDDED)
    weight = inside(loaded)._pipe.transformer.transformer_blocks[0].ff.net[2].weight
    with torch.no_grad():
        weight[0, 0] = float("nan")
    report = draw(loaded).record.cache
    assert (report.engaged, report.reason_code) == (False, "not_a_number")
    assert report.nan_diffs > 0
    assert report.residual_diff is None


def test_what_changes_between_calls_is_no_more_than_needed() -> None:
    loaded = load(UNCACHED)
    draw(loaded, speed="lossless")
    balanced = CacheSettings(Fn_compute_blocks=1)
    other, prune = balanced.overridden({"residual_diff_threshold": 0.5}), balanced.overridden({"cache_type": "DBPrune"})
    wanted = (None, balanced, balanced, other, prune, prune, None, None, other)
    transitions = [inside(loaded)._cache.prepare(settings, 20, passes=1) for settings in wanted]
    expected = "none exchange none override exchange none exchange none exchange"
    assert transitions == expected.split()


def test_a_forced_refresh_keeps_no_activations_beyond_what_flush_frees() -> None:
    loaded = load(EMBEDDED)
    cache = {"force_refresh_step_hint": 5, "force_refresh_step_policy": "repeat", "taylorseer_order": 2}
    draw(loaded, cache=cache, num_inference_steps=18)
    shape = (1, 36, 128)  # of the image's hidden states: 36 tokens, 128 wide

    def held() -> list[Any]:
        gc.collect()
        return [each for each in gc.get_objects() if isinstance(each, torch.Tensor) and each.shape == shape]

    assert held()
    loaded.runner.flush()
    assert not held()


def test_a_default_that_cannot_run_is_not_the_other_types_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    from cache_dit.caching.cache_contexts.prune_manager import PrunedContextManager

    def fails(*args: Any, **kwargs: Any) -> bool:
        raise ValueError("secret detail")

    monkeypatch.setattr(PrunedContextManager, "can_prune", fails)
    loaded = load(with_cache(cache_type="DBPrune", Fn_compute_blocks=1))
    report = draw(loaded).record.cache
    assert (report.enabled, report.reason_code) == (False, "unsupported")
    assert "DBPrune" in (report.reason or "")
    assert draw(loaded, cache={"cache_type": "DBCache"}).record.cache.engaged


def test_what_no_request_could_run_with_fails_the_load_with_its_reason() -> None:
    tight = EMBEDDED.limits.model_copy(update={"max_pixel_steps": 1000})
    with pytest.raises(LoadError, match="at most 1,000 in one request"):
        load(EMBEDDED.model_copy(update={"limits": tight}))
