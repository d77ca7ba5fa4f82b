"""Pictures in on real classes with tiny weights: what the server makes is what diffusers makes, cached or not."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.config.settings import Limits, ModelSettings, RequestDefaults, Settings
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.inputs import InputPicture, Inputs
from cache_dit_serving.media.values import Clip
from cache_dit_serving.pipeline.protocol import Drawn, Loaded, Unwatched
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.tasks import Task
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.families import ENTRIES, save_family
from tests.support.in_process import load
from tests.support.pictures import apple, mask

# What of an entry's call a request holds; the rest is configured.
ASKED = ("prompt", "max_sequence_length", "negative_prompt", "num_inference_steps", "true_cfg_scale", "num_frames")
CONFIGURED = ("_auto_resize", "text_encoder_out_layers", "prompt_template")
SIDES = {"Flux2": 64, "Flux2Klein": 64, "CogVideoXImageToVideo": 16, "WanImageToVideo": 16}
"""Pixels; 32 elsewhere. Flux2 takes no smaller pictures, CogVideoX no other size than its configuration's."""


def side_of(name: str) -> int:
    return SIDES.get(name, 32)


def load_family(name: str, folder: Path) -> Loaded:
    call = ENTRIES[name]["call"]
    return load(
        Settings(
            model=ModelSettings(path=str(save_family(name, folder / name)), dtype="float32"),
            cache=CacheSettings(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.9),
            # Arguments that YAML could not hold: here they need not come from it.
            defaults=RequestDefaults.model_construct(
                **RequestDefaults(width=side_of(name), height=side_of(name), num_inference_steps=6).model_dump()
                | {"pipeline_arguments": {key: call[key] for key in CONFIGURED if key in call}}
                | {"max_sequence_length": call.get("max_sequence_length")}
            ),
            limits=Limits(min_side=16),
        )
    )


def draw(loaded: Loaded, name: str, images: list[Image.Image], masked: bool = False, **fields: Any) -> Drawn:
    call = ENTRIES[name]["call"]
    asked = {key: call[key] for key in ASKED if key in call} | {"seed": 3} | fields
    asked |= {"image_urls": ["a picture"] * len(images)} | ({"mask_url": "a mask"} if masked else {})
    inputs = Inputs(
        tuple(InputPicture(image, "") for image in images), InputPicture(mask(*images[0].size), "") if masked else None
    )
    return loaded.runner.sample(plan(GenerateRequest.model_validate(asked), loaded.model, inputs), 0, Unwatched())


def by_diffusers(pipe: Any, name: str, **arguments: Any) -> np.ndarray[Any, Any]:
    pipe.set_progress_bar_config(disable=True)
    call = ENTRIES[name]["call"]
    taken = inspect.signature(type(pipe).__call__).parameters
    known = {key: call[key] for key in (*ASKED, *CONFIGURED) if key in call and key in taken}
    side = side_of(name)
    size = {"width": side, "height": side, "output_type": "np"}
    if "max_area" in taken:
        size["max_area"] = side * side
    output = pipe(**known | size | arguments, generator=torch.Generator("cpu").manual_seed(3))
    made: np.ndarray[Any, Any] = output[0][0]
    return made


def saved(name: str, folder: Path) -> Any:
    """The pipeline by diffusers alone, of the weights that :func:`load_family` has saved."""
    return diffusers.DiffusionPipeline.from_pretrained(folder / name, dtype=torch.float32)


def sibling(pipe: Any, infix: str) -> Any:
    cls = getattr(diffusers, type(pipe).__name__.replace("Pipeline", f"{infix}Pipeline"))
    return cls(**{key: value for key, value in pipe.components.items() if key in inspect.signature(cls).parameters})


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


@pytest.mark.parametrize(("name", "pictures"), [("FluxKontext", 1), ("Flux2", 1), ("Flux2", 2), ("Flux2Klein", 2)])
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


@pytest.mark.parametrize(
    "name", ["WanImageToVideo", "LTXImageToVideo", "CogVideoXImageToVideo", "HunyuanVideoImageToVideo"]
)
def test_a_family_animates_a_picture(name: str, tmp_path: Path) -> None:
    loaded = load_family(name, tmp_path)
    assert loaded.model.tasks == [Task.IMAGE_TO_VIDEO]
    image = apple(side_of(name), side_of(name))
    frames: dict[str, Any] = {"num_frames": 9}
    ours = draw(loaded, name, [image], speed="lossless", **frames)
    assert isinstance(ours.media, Clip)
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
    assert load_family("Wan", tmp_path).model.tasks == [Task.TEXT_TO_VIDEO]
