"""Text-to-audio over real HTTP: a tiny StableAudio with random weights behind `bentoml serve`."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import av
import pytest
import requests

from tests.support.answers import error
from tests.support.families import save_audio
from tests.support.jobs import submitted
from tests.support.jobs_events import follow
from tests.support.published import keeps_to_what_it_publishes
from tests.support.server import Server, options, ready, serving

pytestmark = pytest.mark.slow

WHOLE_S = 511 / 1_000
"""Of 0.512 s, the tiny autoencoder's decoder makes one sample less."""


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("audio")
    environ = options(
        MODEL__PATH=str(save_audio(folder / "model")),
        MODEL__DTYPE="float32",
        CACHE={"Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 0.9},
        DEFAULTS={"num_inference_steps": 6},
    )
    with serving(folder, environ=environ) as running:
        running.wait_for(ready)
        yield running


def opened(content: bytes) -> tuple[str, int, float, dict[str, str]]:
    """Codec, rate, seconds and metadata of a file."""
    container: Any = av.open(io.BytesIO(content))
    stream = container.streams.audio[0]
    samples = sum(frame.samples for frame in container.decode(audio=0))
    return stream.codec_context.name, stream.rate, samples / stream.rate, dict(container.metadata)


def test_a_prompt_becomes_a_sound_with_its_seed_and_evidence(audio: Server) -> None:
    answer = audio.generate(prompt="a hammer", seed=3, audio_length_s=0.3).json()
    assert "images" not in answer
    assert "video" not in answer
    assert (answer["seeds"], answer["warnings"]) == ([3], [])
    assert answer["cache"]["engaged"]
    codec, rate, seconds, metadata = opened(base64.b64decode(answer["audio"]))
    assert (codec, rate, seconds) == ("pcm_s16le", 1_000, 0.3)
    parameters = json.loads(metadata["comment"])
    assert {name: parameters[name] for name in ("audio_length_s", "seed")} == {"audio_length_s": 0.3, "seed": 3}
    assert audio.post("/generate", json=parameters).json()["audio"] == answer["audio"]
    assert audio.generate(prompt="a hammer", seed=4, audio_length_s=0.3).json()["audio"] != answer["audio"]


def test_previews_of_a_sound_are_refused_by_name_or_ignored_with_a_warning(audio: Server) -> None:
    job = submitted(audio, num_inference_steps=40, audio_length_s=0.3)
    refused = error(audio.get(f"{job}/events?previews=2"), 400)
    assert (refused["param"], refused["code"]) == ("previews", "unsupported_field")
    told = list(follow(audio, job, previews=2, lenient=True))
    [warning] = [event.data for event in told if event.kind == "warning"]
    assert (warning["param"], warning["code"]) == ("previews", "unsupported_field")
    assert told[-1].data["state"] == "succeeded"


def test_a_sound_is_a_file_behind_an_address(audio: Server) -> None:
    address = audio.generate(seed=3, audio_format="flac", output_format="url").json()["audio"]
    served = requests.get(address, timeout=60)
    assert served.headers["Content-Type"] == "audio/flac"
    assert opened(served.content)[:3] == ("flac", 1_000, WHOLE_S)


def test_a_comparison_measures_sounds(audio: Server) -> None:
    answer = audio.post("/compare", json={"prompt": "a hammer", "seed": 3}).json()
    assert answer["snr_db"] < 100
    assert answer["spectral_db"] > 0
    assert not {"psnr_db", "ssim", "flip", "flicker", "worst_frame"} & answer.keys()
    assert not answer["identical"]
    assert 0 < answer["mean_difference"] < answer["max_difference"]
    for content in (answer["cached"]["audio"], answer["uncached"]["audio"], answer["difference"]):
        assert opened(base64.b64decode(content))[1:3] == (1_000, WHOLE_S)
    assert answer["cached"]["cache"]["engaged"]


def test_a_client_reads_what_the_model_takes(audio: Server) -> None:
    described = audio.get("/capabilities").json()
    assert described["tasks"] == ["text-to-audio"]
    assert described["size_multiple"] is None
    field = described["fields"]["audio_length_s"]
    assert {name: field[name] for name in ("default", "minimum", "maximum")} == {
        "default": 0.512,
        "minimum": 0.1,
        "maximum": 0.512,
    }
    assert {"width", "num_frames", "image_urls", "image_format"}.isdisjoint(described["fields"])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ('{"prompt": "a", "audio_length_s": 0}', "audio_length_s"),
        ('{"prompt": "a", "audio_length_s": 1e9}', "audio_length_s"),
        ('{"prompt": "a", "audio_length_s": NaN}', "audio_length_s"),
        ('{"prompt": "a", "audio_format": "mp3"}', "audio_format"),
        ('{"prompt": "a", "num_images": 2}', "num_images"),
        ('{"prompt": "a", "image_urls": ["QUJD"]}', "image_urls"),
    ],
)
def test_a_bad_field_is_named_and_nothing_is_disturbed(audio: Server, body: str, param: str) -> None:
    refused = audio.post("/generate", data=body, headers={"Content-Type": "application/json"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param
    assert audio.generate(seed=3).status_code == 200


def test_every_method_answers_as_published_and_by_bentomls_clients(audio: Server) -> None:
    keeps_to_what_it_publishes(audio, prompt="a bell", seed=2, include_stats=True)
