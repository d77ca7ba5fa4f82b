"""A family's pipeline with tiny weights behind the server's planning, and the same by diffusers alone."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.config.settings import Limits, ModelSettings, RequestDefaults, Settings
from cache_dit_serving.media.inputs import InputImage, Inputs
from cache_dit_serving.media.video_input import InputVideo
from cache_dit_serving.pipeline.protocol import Loaded, Sampled, Unwatched
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.families import ENTRIES, save_family
from tests.support.images import mask
from tests.support.in_process import load

# What of an entry's call a request holds; the rest is configured.
ASKED = ("prompt", "max_sequence_length", "negative_prompt", "num_inference_steps", "true_cfg_scale", "num_frames")
CONFIGURED = ("_auto_resize", "text_encoder_out_layers", "prompt_template", "use_resolution_binning")
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


def draw(
    loaded: Loaded,
    name: str,
    images: list[Image.Image],
    masked: bool = False,
    *,
    control: Image.Image | None = None,
    last_image: Image.Image | None = None,
    video: list[Image.Image] | None = None,
    **fields: Any,
) -> Sampled:
    call = ENTRIES[name]["call"]
    asked = {key: call[key] for key in ASKED if key in call} | {"seed": 3} | fields
    brought = {"mask_url": masked, "control_url": control, "last_image_url": last_image, "video_url": video}
    asked |= {field: "a file" for field, value in brought.items() if value}
    asked["image_urls"] = ["a file"] * len(images)
    inputs = Inputs(
        images=tuple(InputImage(image, "") for image in images),
        mask=InputImage(mask(*images[0].size), "") if masked else None,
        control=InputImage(control, "") if control else None,
        last_image=InputImage(last_image, "") if last_image else None,
        video=InputVideo(tuple(video), 12.0, more=False, digest="") if video else None,
    )
    call = plan(resolve(GenerateRequest.model_validate(asked), loaded.model), inputs).fitted().call
    return loaded.runner.sample(replace(call, keep_floats=True), Unwatched())


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
    """The pipeline of the class with this in its name, of the same components."""
    cls = getattr(diffusers, type(pipe).__name__.replace("Pipeline", f"{infix}Pipeline"))
    return cls(**{key: value for key, value in pipe.components.items() if key in inspect.signature(cls).parameters})
