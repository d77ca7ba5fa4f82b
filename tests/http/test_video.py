"""Text-to-video over real HTTP: a tiny Wan with random weights ."""

from __future__ import annotations

import base64
import io
import json
import urllib.request
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.support.published import keeps_to_what_it_publishes
from tests.support.server import Server

pytestmark = pytest.mark.slow


def frames_of(content: bytes) -> np.ndarray[Any, Any]:
    container: Any = av.open(io.BytesIO(content))
    return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_prompt_becomes_a_video_with_its_seed_and_evidence(wan: Server) -> None:
    answer = wan.generate(seed=3, num_frames=9, fps=12).json()
    content = base64.b64decode(answer["video"])
    assert "images" not in answer
    assert answer["seeds"] == [3]
    assert answer["warnings"] == []
    assert answer["cache"]["engaged"]
    assert answer["cache"]["cached_steps"] == 5
    container: Any = av.open(io.BytesIO(content))
    stream = container.streams.video[0]
    assert (stream.frames, stream.width, stream.height, float(stream.average_rate)) == (9, 32, 32, 12.0)
    parameters = json.loads(container.metadata["comment"])
    assert {key: parameters[key] for key in ("num_frames", "fps", "seed", "width")} == {
        "num_frames": 9,
        "fps": 12,
        "seed": 3,
        "width": 32,
    }
    again = wan.post("/generate", json=parameters).json()
    assert again["video"] == answer["video"]


def test_the_cache_changes_the_video_and_can_be_left_out(wan: Server) -> None:
    cached, uncached = (wan.generate(seed=3, **fields).json() for fields in ({}, {"speed": "lossless"}))
    assert uncached["cache"]["enabled"] is False
    assert cached["video"] != uncached["video"]
    assert len(frames_of(base64.b64decode(uncached["video"]))) == 17
    assert wan.generate(seed=3).json()["video"] == cached["video"]


@pytest.mark.parametrize("video_format", ["webp", "gif"])
def test_a_video_comes_as_an_animation_on_request(wan: Server, video_format: str) -> None:
    answer = wan.generate(num_frames=9, video_format=video_format).json()
    animation: Any = Image.open(io.BytesIO(base64.b64decode(answer["video"])))
    assert (animation.format, animation.n_frames) == (video_format.upper(), 9)


def test_a_video_comes_as_a_url_or_a_path(wan: Server) -> None:
    url = wan.generate(num_frames=9, output_format="url").json()["video"]
    with urllib.request.urlopen(url) as response:
        assert response.headers["Content-Type"] == "video/mp4"
        assert len(frames_of(response.read())) == 9
    path = wan.generate(num_frames=9, output_format="path", output_dir="clips").json()["video"]
    assert path.startswith(str(wan.outputs / "clips"))
    assert path.endswith(".mp4")


def test_a_comparison_measures_frame_by_frame(wan: Server) -> None:
    answer = wan.post("/compare", json={"prompt": "a cat", "seed": 3}).json()
    assert {"cached", "uncached", "difference", "psnr_db", "ssim", "worst_frame", "speedup"} <= answer.keys()
    assert 0 < answer["flicker"] < 1
    assert 0 < answer["flip"] < 1
    assert 0 < answer["worst_frame"]["flip"] < 1
    assert 0 <= answer["worst_frame"]["frame"] < 17
    assert answer["worst_frame"]["psnr_db"] <= answer["psnr_db"]
    assert answer["worst_frame"]["ssim"] <= 1
    assert "image" not in answer["cached"]
    assert len(frames_of(base64.b64decode(answer["difference"]))) == 17
    assert answer["cached"]["cache"]["engaged"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_frames": 0}, "greater than or equal to 1"),
        ({"num_frames": 1}, "num_frames is 1; this model makes at least 5 frames (4k + 1)"),
        ({"num_frames": 2}, "num_frames is 2; this model makes at least 5 frames (4k + 1)"),
        ({"num_frames": 50}, "the nearest are 49 and 53"),
        ({"num_frames": 10**6}, "num_frames is 1,000,000; this server makes at most 81 frames (4k + 1)"),
        ({"num_frames": 9.5}, "num_frames"),
        ({"fps": 0}, "greater than or equal to 1"),
        ({"fps": 1000}, "less than or equal to 120"),
        ({"video_format": "avi"}, "should be 'mp4', 'webp' or 'gif'"),
        ({"video_format": "gif", "fps": 60}, "a gif shows at most 50 frames a second"),
        ({"image_format": "png"}, "does not take image_format (it makes video)"),
        ({"num_images": 2}, "does not take num_images (it makes one video a request)"),
        ({"width": 4096, "height": 4096, "num_inference_steps": 100}, "width x height x num_frames"),
    ],
)
def test_what_a_video_model_cannot_do_is_refused_by_name(wan: Server, fields: dict[str, Any], message: str) -> None:
    response = wan.generate(**fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert message in error["message"]
    assert error["param"] in fields


def test_what_the_model_makes_stands_in_its_description(wan: Server) -> None:
    info, capabilities = wan.get("/get_model_info").json(), wan.get("/capabilities").json()
    assert info["encoders"]["mp4"].startswith("libx264, PyAV ")
    assert info["tasks"] == capabilities["tasks"] == ["text-to-video", "video-to-video"]
    assert info["defaults"]["num_frames"] == 17
    assert info["defaults"]["fps"] == 16
    fields = capabilities["fields"]
    assert fields["num_frames"]["enum"] == list(range(5, 82, 4))
    assert fields["num_frames"]["default"] == 17
    assert fields["fps"]["maximum"] == 120
    assert fields["video_format"]["default"] == "mp4"
    assert "num_images" not in fields
    assert 32 * 32 * 17 in [rate["pixels"] for rate in capabilities["rates"]]
    assert capabilities["limits"]["max_pixel_steps"] == 1280 * 720 * 129 * 50


def test_an_image_model_refuses_what_is_for_video(server: Server) -> None:
    for fields in ({"num_frames": 9}, {"video_format": "mp4"}):
        response = server.generate(**fields)
        assert response.status_code == 400
        assert "(it makes images)" in response.json()["error"]["message"]


def test_every_method_answers_as_published_and_by_bentomls_clients(wan: Server) -> None:
    keeps_to_what_it_publishes(wan, prompt="a cat", seed=2, include_stats=True)
