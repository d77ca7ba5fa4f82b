"""Sound on real classes with tiny weights: Stable Audio, and LTX-2's video with its sound."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.config.settings import Limits, ModelSettings, RequestDefaults, ServerSettings, Settings
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.encode import encode
from cache_dit_serving.media.values import AudioOutput, VideoOutput
from cache_dit_serving.pipeline.protocol import Loaded, Unwatched
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.planned import Planned
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.planning.tasks import Task
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.families import ENTRIES, save_audio, save_family
from tests.support.in_process import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_audio(tmp_path_factory.mktemp("audio") / "StableAudio")


@pytest.fixture(scope="module")
def audio(folder: Path) -> Loaded:
    return load(
        Settings(
            model=ModelSettings(path=str(folder), dtype="float32"),
            cache=CacheSettings(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.9),
            limits=Limits(max_audio_s=0.4),
        )
    )


def planned(loaded: Loaded, **fields: Any) -> Planned:
    asked = {"prompt": "a hammer", "seed": 3, "num_inference_steps": 6} | fields
    return plan(resolve(GenerateRequest.model_validate(asked), loaded.model))


def test_a_sound_is_the_one_of_diffusers_and_steps_are_reused(audio: Loaded, folder: Path) -> None:
    assert audio.model.tasks == [Task.TEXT_TO_AUDIO]
    pipe: Any = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    expected = pipe(
        "a hammer",
        audio_end_in_s=0.3,
        num_inference_steps=6,
        generator=torch.Generator("cpu").manual_seed(3),
        output_type="np",
    ).audios[0]
    uncached, cached = (
        audio.runner.sample(planned(audio, audio_length_s=0.3, **fields).call, Unwatched())
        for fields in ({"speed": "lossless"}, {})
    )
    assert isinstance(uncached.media, AudioOutput)
    assert np.array_equal(uncached.media.array, expected)
    assert (uncached.media.rate, uncached.media.array.shape) == (1_000, (2, 300))
    assert cached.record.cache.engaged
    assert not np.array_equal(cached.media.array, expected)


def test_the_length_is_bounded_by_the_model_and_the_operator(audio: Loaded) -> None:
    # The model makes 0.512 s each time, which is the work; the operator lets 0.4 s out.
    result = planned(audio)
    assert (result.call.arguments["audio_end_in_s"], result.call.pixels) == (0.4, 512)
    assert result.parameters(result.call)["audio_length_s"] == 0.4
    with pytest.raises(InvalidRequest, match=r"audio_length_s is 0\.5; this server makes at most 0\.4 s"):
        planned(audio, audio_length_s=0.5)
    for name, value in {"num_images": 2, "width": 64, "image_format": "png", "video_format": "mp4"}.items():
        with pytest.raises(InvalidRequest, match=f"does not take {name}"):
            planned(audio, **{name: value})


def test_a_video_of_ltx_2_is_heard(tmp_path: Path) -> None:
    folder = save_family("LTX2", tmp_path / "LTX2")
    entry = dict(ENTRIES["LTX2"]["call"])
    asked = ["prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "max_sequence_length"]
    asked += ["height", "width", "num_frames"]
    fields = {name: entry.pop(name) for name in asked}
    entry = {name: value for name, value in entry.items() if name not in ("frame_rate", "output_type")}
    pipe: Any = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    expected = pipe(
        **fields, **entry, frame_rate=25.0, generator=torch.Generator("cpu").manual_seed(3), output_type="np"
    )
    loaded = load(
        Settings(
            model=ModelSettings(path=str(folder), dtype="float32"),
            cache=None,
            # The cache is tried on a video of the default size.
            defaults=RequestDefaults(**{name: fields[name] for name in ("height", "width", "num_frames")}),
            limits=Limits(min_side=16),
            server=ServerSettings(warm_up=False),
        )
    )
    fields |= {"seed": 3, "fps": 25, "extra_args": entry}
    result = plan(resolve(GenerateRequest.model_validate(fields), loaded.model))
    media = loaded.runner.sample(replace(result.fitted().call, keep_floats=True), Unwatched()).media
    assert isinstance(media, VideoOutput)
    assert media.audio is not None
    assert np.array_equal(media.array, expected.frames[0])
    assert np.array_equal(media.audio.array, expected.audio[0].numpy())
    assert media.audio.rate == 16_000
    content, _ = encode(media, result.output, result.parameters(result.call))
    container: Any = av.open(io.BytesIO(content))
    assert (container.streams.video[0].frames, container.streams.audio[0].rate) == (len(media.array), 16_000)
    result = plan(resolve(GenerateRequest.model_validate(fields | {"video_format": "webp"}), loaded.model))
    assert [(warning.param, warning.code) for warning in result.warnings] == [("video_format", "adjusted")]
