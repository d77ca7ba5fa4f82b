"""Assembly: what is loaded, what is refused at load, and why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.config.settings import Limits, ModelSettings, Settings
from cache_dit_serving.engine.model_info import model_info
from cache_dit_serving.errors import InvalidRequest, LoadError
from tests.support.families import save_family
from tests.support.in_process import (
    EMBEDDED,
    UNCACHED,
    draw,
    load,
    with_cache,
)
from tests.support.pipelines import save_flux_of_nan, save_flux_with_guidance


@pytest.mark.verified
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
        ({}, {"Fn_compute_blocks": 13}, {}, "more than the 12 blocks of transformer.transformer_blocks"),
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


def test_a_task_without_requests_is_named(tmp_path: Path) -> None:
    folder = save_family("EasyAnimateInpaint", tmp_path / "model")
    with pytest.raises(LoadError, match="EasyAnimateInpaintPipeline is for video-inpaint; this version serves class-"):
        load(Settings(model=ModelSettings(path=str(folder), dtype="float32")))


def test_a_missing_package_is_named_with_the_remedy(tmp_path: Path) -> None:
    folder = save_family("QwenImage", tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "QwenImageEditPipeline", "processor": ["transformers", "Qwen2VLProcessor"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    shutil.copytree(folder / "tokenizer", folder / "processor")
    for name, kind in (("", "image"), ("video_", "video")):
        config = {f"{kind}_processor_type": f"Qwen2VL{kind.capitalize()}Processor"}
        (folder / "processor" / f"{name}preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match=r"needs the package torchvision.*pip install -r requirements-vision\.txt"):
        load(Settings(model=ModelSettings(path=str(folder), dtype="float32")))


def test_a_models_public_name_does_not_say_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cache_dit_serving.pipeline.load import public_name

    (tmp_path / "customers" / "secret").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("customers/secret") == public_name(str(tmp_path / "customers" / "secret")) == "secret"
    assert public_name("Qwen/Qwen-Image") == "Qwen/Qwen-Image"
    assert public_name("embedded") == "embedded"


def test_an_attention_backend_that_cannot_run_is_refused_with_those_that_can() -> None:
    for name in ("flash", "_npu_fia", "_native_cudnn", "nonsense"):
        with pytest.raises(LoadError, match="usable here: native"):
            load(EMBEDDED.model_copy(update={"attention_backend": name}))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cuda", "device 'cuda' is not available here"),
        ("meta", "generator_device 'meta' is neither cpu nor the model's"),
    ],
)
def test_noise_is_drawn_on_the_cpu_or_on_the_models_device(name: str, words: str) -> None:
    model = EMBEDDED.model.model_copy(update={"generator_device": name})
    with pytest.raises(LoadError, match=words):
        load(EMBEDDED.model_copy(update={"model": model}))


def test_weights_that_draw_no_numbers_fail_the_load(tmp_path: Path) -> None:
    settings = EMBEDDED.model_copy(
        update={"model": ModelSettings(path=str(save_flux_of_nan(tmp_path)), dtype="float32")}
    )
    with pytest.raises(LoadError, match="not numbers"):
        load(settings)


@pytest.mark.verified
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


@pytest.mark.verified
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
