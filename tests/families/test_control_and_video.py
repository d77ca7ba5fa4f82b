"""Control pictures, last pictures and videos in, on real classes with tiny weights: made as diffusers makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.values import VideoOutput
from cache_dit_serving.planning.tasks import Task
from tests.support.family_runs import by_diffusers, draw, load_family, saved, sibling, side_of
from tests.support.images import apple, mask

pytestmark = pytest.mark.verified


def edges(side: int) -> Image.Image:
    return apple(side, side).convert("L").point(lambda value: 255 * (value > 100)).convert("RGB")


def moving(side: int, frames: int) -> list[Image.Image]:
    """A picture that turns."""
    return [apple(side, side).rotate(10 * index) for index in range(frames)]


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("FluxControl", Task.CONTROL),
        ("FluxControlNet", Task.CONTROL),
        ("SanaControlNet", Task.CONTROL),
        ("FluxControlImg2Img", Task.CONTROL_IMG2IMG),
        ("FluxControlNetInpaint", Task.CONTROL_INPAINT),
    ],
)
def test_a_family_draws_along_a_control_picture(name: str, task: Task, tmp_path: Path) -> None:
    loaded = load_family(name, tmp_path)
    assert loaded.model.tasks == [task]
    side = side_of(name)
    given: dict[str, Any] = {"control_image": edges(side), "prompt": "an apple"}
    images = [] if task is Task.CONTROL else [apple(side, side)]
    masked = task is Task.CONTROL_INPAINT
    if images:
        given |= {"image": images[0], "strength": 0.7}
    if masked:
        given["mask_image"] = mask(side, side)
    fields: dict[str, Any] = {"prompt": "an apple"}
    if images:
        fields["strength"] = 0.7
    ours = draw(loaded, name, images, masked, control=edges(side), speed="lossless", **fields)
    assert np.array_equal(ours.media.array, by_diffusers(saved(name, tmp_path), name, **given))
    assert draw(loaded, name, images, masked, control=edges(side), prompt="an apple").record.cache.engaged
    other = draw(loaded, name, images, masked, control=apple(side, side), speed="lossless", **fields)
    assert not np.array_equal(other.media.array, ours.media.array)
    with pytest.raises(InvalidRequest, match="this model needs a picture in control_url") as refused:
        draw(loaded, name, images, masked, prompt="an apple")
    assert refused.value.param == "control_url"


@pytest.mark.parametrize(
    ("name", "parameter"),
    [("WanVideoToVideo", "video"), ("CogVideoXVideoToVideo", "video"), ("CogVideoXFunControl", "control_video")],
)
def test_a_family_makes_a_video_of_a_video(name: str, parameter: str, tmp_path: Path) -> None:
    loaded = load_family(name, tmp_path)
    # CogVideoX decodes two latents at a time, four frames each: 9 frames are its least, and the next are 17.
    least, more, wrong = (
        (9, 17, "this model makes at least 9 frames")
        if name.startswith("CogVideoX")
        else (5, 13, "the nearest are 5 and 9")
    )
    video = moving(side_of(name), 10)
    fields: dict[str, Any] = {"strength": 0.7} if "strength" in loaded.model.traits.parameters else {}
    ours = draw(loaded, name, [], video=video, speed="lossless", **fields)
    expected = by_diffusers(saved(name, tmp_path), name, **{parameter: video[:9]}, **fields)
    assert isinstance(ours.media, VideoOutput)
    assert np.array_equal(ours.media.array, expected)
    assert (len(ours.media.array), ours.media.fps) == (9, 12.0)
    assert draw(loaded, name, [], video=video).record.cache.engaged
    shorter = draw(loaded, name, [], video=video, num_frames=least, fps=8)
    assert (shorter.record.num_frames, shorter.media.fps) == (least, 8.0)  # type: ignore[union-attr]
    refusals: list[tuple[int, dict[str, Any], str]] = [
        (3, {}, f"video_url has 3 frames; this model needs at least {least}"),
        (9, {"num_frames": more}, f"num_frames is {more} and video_url has 9"),
        (9, {"num_frames": 6}, wrong),
        (0, {}, "this model needs a video in video_url"),
    ]
    for frames, asked, words in refusals:
        with pytest.raises(InvalidRequest, match=words):
            draw(loaded, name, [], video=video[:frames], **asked)
    with pytest.raises(InvalidRequest, match="does not take image_urls; its tasks are: video-"):
        draw(loaded, name, [video[0]], video=video)


def test_the_weights_of_text_to_video_make_videos_of_videos_too(tmp_path: Path) -> None:
    loaded = load_family("Wan", tmp_path)
    assert loaded.model.tasks == [Task.TEXT_TO_VIDEO, Task.VIDEO_TO_VIDEO]
    video = moving(side_of("Wan"), 9)
    ours = draw(loaded, "Wan", [], video=video, num_frames=None, strength=0.7, speed="lossless")
    alone = sibling(saved("Wan", tmp_path), "VideoToVideo")
    assert np.array_equal(ours.media.array, by_diffusers(alone, "Wan", video=video, strength=0.7))
    assert draw(loaded, "Wan", [], video=video, num_frames=None).record.cache.engaged
    # The class has no place for the second transformer of Wan 2.2.
    assert load_family("Wan-2.2", tmp_path).model.tasks == [Task.TEXT_TO_VIDEO]


def test_a_video_ends_with_a_picture_where_the_weights_can(tmp_path: Path) -> None:
    name = "WanImageToVideo-2.2"
    loaded = load_family(name, tmp_path)
    first, last = apple(32, 32), edges(32)
    ours = draw(loaded, name, [first], last_image=last, num_frames=9, speed="lossless")
    expected = by_diffusers(saved(name, tmp_path), name, image=first, last_image=last, num_frames=9)
    assert np.array_equal(ours.media.array, expected)
    alone = draw(loaded, name, [first], num_frames=9, speed="lossless")
    assert not np.array_equal(alone.media.array, ours.media.array)
    with pytest.raises(InvalidRequest, match="ends what begins with image_urls"):
        draw(loaded, name, [], last_image=last)
    # Wan 2.1 has an encoder for the first picture; these weights have no place for a second one.
    with pytest.raises(InvalidRequest, match="does not take last_image_url"):
        draw(load_family("WanImageToVideo", tmp_path), "WanImageToVideo", [apple(16, 16)], last_image=last)


FITTED: list[tuple[str, dict[str, str]]] = [
    ("FluxControl", {"control": "control_image"}),
    ("WanImageToVideo-2.2", {"image": "image", "last_image": "last_image"}),
    ("WanVideoToVideo", {"video": "video"}),
    ("CogVideoXFunControl", {"video": "control_video"}),
]


@pytest.mark.parametrize(("name", "parameters"), FITTED)
def test_what_has_another_shape_is_cropped_and_the_rest_is_left_to_diffusers(
    name: str, parameters: dict[str, str], tmp_path: Path
) -> None:
    loaded, side = load_family(name, tmp_path), side_of(name)
    alone, frames = saved(name, tmp_path), 9
    fields: dict[str, Any] = {"num_frames": frames} if loaded.model.traits.video else {"prompt": "an apple"}
    given = {field: fields[field] for field in fields if loaded.model.traits.takes(field)}
    more: dict[str, Any] = {"width": side, "height": side, "speed": "lossless"}

    def brought(kind: str, width: int, height: int) -> Any:
        turned = [apple(width, height).rotate(10 * index) for index in range(frames)]
        return {"video": turned, "last_image": turned[3]}.get(kind, turned[0])

    def ours(width: int, height: int, **asked: Any) -> np.ndarray[Any, Any]:
        media = {kind: brought(kind, width, height) for kind in parameters}
        images = [media.pop("image")] if "image" in media else []
        drawn = draw(loaded, name, images, **media, **fields, **more, **asked)
        return drawn.media.array

    def expected(media: dict[str, Any]) -> np.ndarray[Any, Any]:
        return by_diffusers(alone, name, **given, **{parameters[kind]: each for kind, each in media.items()})

    def cropped(each: Any) -> Any:
        if isinstance(each, list):
            return [cropped(frame) for frame in each]
        return ImageOps.fit(each, (side, side), Image.Resampling.LANCZOS)

    wide = {kind: brought(kind, 3 * side, 2 * side) for kind in parameters}
    assert np.array_equal(ours(3 * side, 2 * side), expected({kind: cropped(each) for kind, each in wide.items()}))
    assert np.array_equal(ours(3 * side, 2 * side, fit="stretch"), expected(wide))
    square = {kind: brought(kind, 2 * side, 2 * side) for kind in parameters}
    assert np.array_equal(ours(2 * side, 2 * side), expected(square))


def test_a_smaller_video_comes_to_vaces_size(tmp_path: Path) -> None:
    """VACE lays the parts of a smaller video beside those of the larger drawing, whatever their places."""
    name = "WanVACE"
    loaded, side = load_family(name, tmp_path), side_of(name)
    small = [apple(side // 2, side // 2).rotate(10 * index) for index in range(17)]
    large = [frame.resize((side, side), Image.Resampling.LANCZOS) for frame in small]
    ours = draw(loaded, name, [], video=small, width=side, height=side, speed="lossless").media.array
    alone = saved(name, tmp_path)
    assert np.array_equal(ours, by_diffusers(alone, name, video=large))
    assert not np.array_equal(ours, by_diffusers(alone, name, video=small))
