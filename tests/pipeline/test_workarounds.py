"""The work-arounds for cache-dit 1.5.3: what they make right, and that they are still needed."""

from __future__ import annotations

import importlib.util
import inspect
import json
import threading
import time
from pathlib import Path
from typing import Any

import cache_dit
import diffusers
import numpy as np
import pytest
import torch
from cache_dit.caching import patch_functors
from cache_dit.caching.block_adapters import BlockAdapterRegister, adapters

from cache_dit_serving.config.acceleration import QuantizeSettings
from cache_dit_serving.media.values import VideoOutput
from cache_dit_serving.pipeline import quantize, workarounds
from cache_dit_serving.pipeline.protocol import Loaded, Sampled
from cache_dit_serving.planning.families import component_of
from tests.support.conformance import draw, settings_of
from tests.support.families import build_pipeline, save_family
from tests.support.in_process import load

pytestmark = pytest.mark.filterwarnings("default")


def test_ltx2_makes_the_same_video_and_sound_through_a_cache_that_reuses_nothing(tmp_path: Path) -> None:
    loaded = load(settings_of("LTX2", save_family("LTX2", tmp_path)))
    plain = draw("LTX2", loaded, speed="lossless").media
    through = draw("LTX2", loaded, cache={"residual_diff_threshold": 0.0})
    assert isinstance(plain, VideoOutput)
    assert isinstance(through.media, VideoOutput)
    assert np.array_equal(plain.array, through.media.array)
    assert plain.audio is not None
    assert through.media.audio is not None
    assert np.array_equal(plain.audio.array, through.media.audio.array)
    reused = draw("LTX2", loaded)
    assert reused.record.cache.cached_steps > 0
    assert not np.array_equal(plain.array, reused.media.array)


SEVERAL_TOKENS = {"width": 64, "height": 32}
"""A size of LTX2 whose attention can be perturbed."""


@pytest.fixture(scope="module")
def ltx2_perturbed(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """An LTX2 whose weights know perturbed attention."""
    folder = save_family("LTX2", tmp_path_factory.mktemp("ltx2"))
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"perturbed_attn": True}))
    return load(settings_of("LTX2", folder))


@pytest.fixture(scope="module")
def unguided(ltx2_perturbed: Loaded) -> np.ndarray[Any, Any]:
    return draw("LTX2", ltx2_perturbed, speed="lossless", **SEVERAL_TOKENS).media.array


@pytest.mark.verified
@pytest.mark.parametrize(
    "guidance",
    [
        {"modality_scale": 2.0},
        {"stg_scale": 1.0, "spatio_temporal_guidance_blocks": [1]},
        {"stg_scale": 1.0, "spatio_temporal_guidance_blocks": [0, 2], "modality_scale": 2.0},
    ],
    ids=["isolated", "perturbed", "both"],
)
def test_ltx2_with_further_passes_makes_the_same_through_the_cache(
    guidance: dict[str, Any], ltx2_perturbed: Loaded, unguided: np.ndarray[Any, Any]
) -> None:
    def drawn(**fields: Any) -> Sampled:
        return draw("LTX2", ltx2_perturbed, **fields, **SEVERAL_TOKENS)

    plain = drawn(speed="lossless", extra_args=guidance)
    through = drawn(cache={"residual_diff_threshold": 0.0}, extra_args=guidance)
    assert np.array_equal(plain.media.array, through.media.array)
    assert not np.array_equal(plain.media.array, unguided)
    reused = drawn(extra_args=guidance)
    assert len(reused.record.stats) == 1 + len(guidance.keys() & {"modality_scale", "stg_scale"})
    assert all(record.reused_blocks for record in reused.record.stats)
    assert not reused.record.cache.redrawn
    assert len(drawn().record.stats) == 1


def shipped_forward(functor: str) -> set[str]:
    """The arguments of the forward that a functor of cache-dit brings, of a fresh copy of its module."""
    file = Path(patch_functors.__file__).with_name(f"functor_{functor}.py")
    spec = importlib.util.spec_from_file_location(f"cache_dit.caching.patch_functors.{functor}_as_shipped", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return set(inspect.signature(module.__dict__["__patch_transformer_forward__"]).parameters)


def test_ltx2s_forward_is_still_older_than_diffusers() -> None:
    called_with = set(inspect.signature(diffusers.LTX2VideoTransformer3DModel.forward).parameters)
    assert not called_with <= shipped_forward("ltx2"), "cache-dit's own LTX2PatchFunctor will do again"


def test_qwen_images_forward_with_a_controlnet_is_still_older_than_diffusers() -> None:
    known = set(inspect.signature(diffusers.QwenImageTransformer2DModel.forward).parameters)
    assert not shipped_forward("qwen_image_controlnet") <= known, "cache-dit's own functor will do again"


@pytest.mark.parametrize(
    ("functor", "keyword"), [("cosmos3", "return_dict"), ("zimage_controlnet", "joint_attention_kwargs")]
)
def test_a_forward_still_lacks_an_argument_of_diffusers(functor: str, keyword: str) -> None:
    assert keyword in workarounds.OUTGROWN.values()
    assert keyword not in shipped_forward(functor), f"remove {keyword} from OUTGROWN"


def test_brias_blocks_are_still_taken_for_others() -> None:
    workarounds.install()
    adapter = workarounds._shipped["Bria"](build_pipeline("Bria"))
    assert {pattern.name for pattern in adapter.forward_pattern} == {"Pattern_0"}, (
        "cache-dit's own adapter will do again"
    )


@pytest.mark.parametrize("name", ["HunyuanVideoFramepack", "SanaVideo", "StableAudio3"])
def test_a_later_class_is_still_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = build_pipeline(name)
    assert component_of(pipe.transformer).later_than_cache_dit
    monkeypatch.setattr(adapters, "_relaxed_assert", workarounds._shipped_assert)
    with pytest.raises(AssertionError, match="not in allowed classes"):
        BlockAdapterRegister.get_adapter(pipe)


@pytest.mark.verified
def test_the_blocks_that_guidance_skips_are_skipped_through_the_cache(tmp_path: Path) -> None:
    loaded = load(settings_of("StableDiffusion3", save_family("StableDiffusion3", tmp_path)))
    guidance = {
        "extra_args": {"skip_guidance_layers": [1], "skip_layer_guidance_scale": 9.0, "skip_layer_guidance_stop": 1.0}
    }
    small = {"width": 16, "height": 16}
    plain = draw("StableDiffusion3", loaded, speed="lossless", **guidance, **small)
    through = draw("StableDiffusion3", loaded, cache={"residual_diff_threshold": 0.0}, **guidance, **small)
    assert np.array_equal(plain.media.array, through.media.array)
    unguided = draw("StableDiffusion3", loaded, speed="lossless", **small)
    assert not np.array_equal(plain.media.array, unguided.media.array)


def test_cache_dit_still_sleeps_as_it_gives_memory_back() -> None:
    assert inspect.getsource(cache_dit.utils.maybe_empty_cache).count("time.sleep(1)") == 2, (
        "remove pipeline/freed_memory.py"
    )


def test_weights_are_quantised_without_a_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    sleep, this = time.sleep, threading.get_ident()

    def sleeping(seconds: float) -> None:
        if threading.get_ident() == this:  # others may sleep: a server's threads of a test before
            slept.append(seconds)
        else:
            sleep(seconds)

    monkeypatch.setattr(time, "sleep", sleeping)
    pipe = build_pipeline("PixArtAlpha")
    settings = QuantizeSettings(quant_type="int8_weight_only", regional_quantize=False)
    assert quantize.quantize(pipe, settings, torch.device("cpu"), lambda what: None)
    assert slept == []
