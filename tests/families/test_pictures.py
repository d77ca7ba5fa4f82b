"""Pictures in on real classes with tiny weights: what the server makes is what diffusers makes, cached or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.values import VideoOutput
from cache_dit_serving.planning.tasks import Task
from tests.support.family_runs import by_diffusers, draw, load_family, saved, sibling, side_of
from tests.support.images import apple, mask

pytestmark = pytest.mark.verified


@pytest.mark.parametrize(
    ("name", "infixes"),
    [
        ("QwenImage", ["Img2Img", "Inpaint"]),
        ("ZImage", ["Img2Img", "Inpaint"]),
        ("StableDiffusion3", ["Img2Img"]),  # its class for inpaint wants 16 latent channels; these weights have 4
        ("Chroma", ["Img2Img"]),  # diffusers 0.42.1 reads a key of the configuration that ChromaTransformer lacks
    ],
)
def test_a_text_to_image_family_begins_from_a_picture_too(name: str, infixes: list[str], tmp_path: Path) -> None:
    loaded = load_family(name, tmp_path)
    assert loaded.model.tasks == sorted({Task.TEXT_TO_IMAGE, *(Task[infix.upper()] for infix in infixes)})
    image = apple(32, 32)
    for infix in infixes:
        masked = infix == "Inpaint"
        ours = draw(loaded, name, [image], masked, strength=0.7, speed="lossless")
        arguments = {"image": image, "strength": 0.7} | ({"mask_image": mask(32, 32)} if masked else {})
        assert np.array_equal(ours.media.array, by_diffusers(sibling(saved(name, tmp_path), infix), name, **arguments))
        cached = draw(loaded, name, [image], masked, strength=1.0).record.cache
        assert (cached.executed_steps, cached.engaged) == (6, True)
    larger = apple(100, 100)
    resized = larger.resize((32, 32), Image.Resampling.LANCZOS)
    ours, same = (draw(loaded, name, [each], strength=0.7, speed="lossless") for each in (larger, resized))
    assert np.array_equal(ours.media.array, same.media.array)


@pytest.mark.parametrize(("name", "pictures"), [("FluxKontext", 1), ("Flux2", 1), ("Flux2", 2)])
def test_a_family_edits_pictures_and_draws_from_text_alone(name: str, pictures: int, tmp_path: Path) -> None:
    loaded = load_family(name, tmp_path)
    assert {Task.IMAGE_EDIT, Task.TEXT_TO_IMAGE} <= set(loaded.model.tasks)
    side = side_of(name)
    images = [apple(side, side), apple(side, side).transpose(Image.Transpose.ROTATE_90)][:pictures]
    pipe = saved(name, tmp_path)
    expected = by_diffusers(pipe, name, image=images[0] if name == "FluxKontext" else images)
    edited = draw(loaded, name, images, speed="lossless")
    assert np.array_equal(edited.media.array, expected)
    assert edited.media.array.shape == (side, side, 3)
    assert draw(loaded, name, images).record.cache.engaged
    alone = draw(loaded, name, [], speed="lossless")
    assert np.array_equal(alone.media.array, by_diffusers(pipe, name))
    assert not np.array_equal(alone.media.array, edited.media.array)
    if name == "FluxKontext":
        with pytest.raises(InvalidRequest, match="holds 2 pictures; FluxKontextPipeline takes one"):
            draw(loaded, name, images * 2)


def test_a_family_animates_a_picture(tmp_path: Path) -> None:
    name = "WanImageToVideo"
    loaded = load_family(name, tmp_path)
    assert loaded.model.tasks == [Task.IMAGE_TO_VIDEO]
    image = apple(side_of(name), side_of(name))
    frames: dict[str, Any] = {"num_frames": 9}
    ours = draw(loaded, name, [image], speed="lossless", **frames)
    assert isinstance(ours.media, VideoOutput)
    assert np.array_equal(ours.media.array, by_diffusers(saved(name, tmp_path), name, image=image, **frames))
    assert draw(loaded, name, [image], **frames).record.cache.engaged
    with pytest.raises(InvalidRequest, match="needs a picture in image_urls; its tasks are: image-to-video"):
        draw(loaded, name, [], **frames)


def test_a_text_to_video_family_with_the_weights_for_it_animates_a_picture_too(tmp_path: Path) -> None:
    loaded = load_family("LTX", tmp_path)
    assert loaded.model.tasks == [Task.IMAGE_TO_VIDEO, Task.TEXT_TO_VIDEO]
    image = apple(32, 32)
    ours = draw(loaded, "LTX", [image], speed="lossless", num_frames=9)
    expected = by_diffusers(sibling(saved("LTX", tmp_path), "ImageToVideo"), "LTX", image=image, num_frames=9)
    assert np.array_equal(ours.media.array, expected)
    assert draw(loaded, "LTX", [image], num_frames=9).record.cache.engaged
    assert Task.IMAGE_TO_VIDEO not in load_family("Wan", tmp_path).model.tasks
