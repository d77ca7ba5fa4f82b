"""Videos in requests over real HTTP: a tiny Wan for video to video."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import av
import numpy as np
import pytest

from cache_dit_serving.media.values import VideoOutput
from cache_dit_serving.media.video import encode_video
from cache_dit_serving.planning.input_warnings import DONE
from tests.support import hostile_files
from tests.support.images import apple, base64_of, data_uri, file_of
from tests.support.server import Server

pytestmark = pytest.mark.slow

FRAMES = np.stack([np.asarray(apple(32, 32).rotate(8 * index), dtype=np.float32) / 255 for index in range(11)])
MP4 = encode_video(VideoOutput(FRAMES, 12.0), "mp4", {})


def opened(answer: dict[str, Any]) -> tuple[int, float, dict[str, Any]]:
    """Frames, frames a second and the request of an answer's video."""
    container: Any = av.open(io.BytesIO(base64.b64decode(answer["video"])))
    stream = container.streams.video[0]
    return stream.frames, float(stream.average_rate), json.loads(container.metadata["comment"])


def test_a_video_becomes_another(wan: Server) -> None:
    asked = {"seed": 3, "num_inference_steps": 8, "strength": 0.75}
    answer = wan.generate(**asked, video_url=data_uri(MP4, "video/mp4")).json()
    frames, fps, parameters = opened(answer)
    assert (frames, fps) == (9, 12.0)
    assert parameters["video_url"].startswith("sha256:")
    assert (parameters["strength"], answer["cache"]["steps"]) == (0.75, 6)
    (warning,) = answer["warnings"]
    assert (warning["param"], warning["code"]) == ("video_url", "adjusted")
    assert "the first 9 frames" in warning["message"]
    assert wan.generate(**asked, video_url=base64_of(MP4)).json()["video"] == answer["video"]
    form = {"prompt": "a red apple on a blue background"} | {name: str(value) for name, value in asked.items()}
    sent = wan.post("/generate", data=form, files={"video": ("apple.mp4", MP4, "video/mp4")})
    assert sent.json()["video"] == answer["video"]


def test_some_of_its_frames_at_another_rate(wan: Server) -> None:
    answer = wan.generate(seed=3, video_url=base64_of(MP4), num_frames=5, fps=6).json()
    assert opened(answer)[:2] == (5, 6.0)
    assert answer["warnings"] == []


def test_a_video_of_another_shape_is_fitted_and_that_is_told(wan: Server) -> None:
    asked = {"seed": 3, "num_frames": 5, "strength": 0.75, "width": 64, "height": 32}
    drawn = {}
    for fit in ("crop", "pad", "stretch"):
        answer = wan.generate(**asked, video_url=base64_of(MP4), fit=fit).json()
        (warning,) = answer["warnings"]
        assert (warning["param"], warning["code"]) == ("video_url", "adjusted")
        assert f"is 32 x 32 pixels and 64 x 32 are drawn: {DONE[fit]} (fit {fit};" in warning["message"]
        drawn[answer["video"]] = fit
    assert len(drawn) == 3


def test_a_comparison_of_videos_made_of_videos(wan: Server) -> None:
    body = {"prompt": "an apple", "seed": 3, "video_url": base64_of(MP4), "strength": 1.0}
    answer = wan.post("/compare", json=body).json()
    assert answer["cached"]["cache"]["engaged"]
    assert answer["psnr_db"] > 0


def test_a_video_that_claims_too_much_is_refused_by_field_and_the_next_one_is_read(wan: Server) -> None:
    for name, case in hostile_files.VIDEOS.items():
        answer = wan.generate(video_url=data_uri(case(), "video/mp4"))
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "video_url"), f"{name}: {answer.text}"
    assert wan.generate(seed=3, video_url=base64_of(MP4), num_frames=5).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"image_urls": [base64_of(file_of(apple()))]}, "image_urls", "does not take image_urls"),
        ({"video_url": base64_of(file_of(apple()))}, "video_url", "not a video this server reads; send MP4 or WebM"),
        ({"video_url": base64_of(MP4[:700])}, "video_url", "video_url"),
        ({"video_url": "http://127.0.0.1/a.mp4"}, "video_url", "does not open"),
        ({"video_url": "file:///etc/passwd"}, "video_url", "video_url"),
        ({"video_url": base64_of(MP4), "num_frames": 13}, "num_frames", "video_url has 11"),
        ({"video_url": base64_of(MP4), "num_frames": 6}, "num_frames", "the nearest are 5 and 9"),
        ({"video_url": base64_of(MP4), "strength": 0}, "strength", "greater than 0"),
        ({"video_url": base64_of(MP4), "control_url": base64_of(MP4)}, "control_url", "does not take control_url"),
    ],
)
def test_a_bad_video_is_refused_by_name(wan: Server, fields: dict[str, Any], param: str, words: str) -> None:
    refused = wan.generate(**fields)
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
