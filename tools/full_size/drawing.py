"""One drawing of a configuration's model at full size, and its footprint: bytes, operations, findings."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import yaml
from PIL import Image

from cache_dit_serving.config.catalog import CONFIGS
from cache_dit_serving.config.settings import AboutSettings, ModelSettings, RequestDefaults
from tests.support.families import ENTRIES
from tools.full_size import models
from tools.full_size.dataless import Drawn, drawing

STEPS = 2
SIZE = 1024
"""Width and height, px, where neither the configuration nor the model has a default."""
IMAGES = ("image", "mask")


class Configuration:
    """The parts of a configuration that its footprint depends on."""

    def __init__(self, name: str) -> None:
        tree = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")) or {}
        self.name = name
        self.model = ModelSettings.model_validate(tree.get("model", {}))
        self.about = AboutSettings.model_validate(tree.get("about", {}))
        self.defaults = RequestDefaults.model_validate(tree.get("defaults", {}))
        self.dtype: torch.dtype = getattr(torch, self.model.dtype)


def draw(configuration: Configuration) -> tuple[Drawn, Any]:
    """Draw an output of a configuration's default size in two steps; return its record and the output's shape.

    Raises:
        Exception: any error of the pipeline; operations on two devices or dtypes are among the record's findings too.
    """
    pipe = models.build(configuration.name, configuration.dtype)
    for key, wanted in (("tiling", configuration.model.vae_tiling), ("slicing", configuration.model.vae_slicing)):
        if wanted:
            getattr(pipe.vae, f"enable_{key}")()
    with drawing() as drawn:
        follow(pipe, drawn)
        output = pipe(**arguments(pipe, configuration))
    return drawn, output


def arguments(pipe: Any, configuration: Configuration) -> dict[str, Any]:
    """Return the arguments of the pipeline's call: the configuration's defaults, and inputs of the same size."""
    call = ENTRIES[models.SHAPES["models"][configuration.name]["entry"]]["call"]
    accepted = inspect.signature(type(pipe).__call__).parameters
    defaults = configuration.defaults.model_dump(exclude_none=True)
    width, height = defaults.get("width", SIZE), defaults.get("height", SIZE)
    given = {"num_inference_steps": STEPS, "output_type": "pt", **defaults, **defaults.get("pipeline_arguments", {})}
    given |= {"num_inference_steps": STEPS, "generator": torch.Generator("cpu").manual_seed(1)}
    given |= {key: value for key, value in call.items() if key in ("prompt", "negative_prompt", "class_labels")}
    if "audio_length_s" in defaults:
        given["audio_end_in_s"] = defaults["audio_length_s"]
    if "frames" in accepted and "num_frames" in defaults:
        given["frames"] = defaults["num_frames"]
    if "pyramid_num_inference_steps_list" in accepted:
        given["pyramid_num_inference_steps_list"] = [1] * pipe.scheduler.config.stages
    for key, value in (call | models.SHAPES["models"][configuration.name].get("inputs", {})).items():
        if _is_input(value):
            given[key] = _input(value, width, height, defaults.get("num_frames", 1))
    return {key: value for key, value in given.items() if key in accepted and value is not None}


def _is_input(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and bool({*IMAGES, "video"} & set(first))


def _input(value: Any, width: int, height: int, frames: int) -> Any:
    if isinstance(value, list):
        return [_input(each, width, height, frames) for each in value[:1]]
    image = Image.new("L" if "mask" in value else "RGB", (width, height))
    return [image] * frames if "video" in value else image


def follow(pipe: Any, drawn: Drawn) -> None:
    """Keep the record's step and part: a step begins with its first forward pass, and ends with the scheduler's."""
    passed = False

    def began(*_: object) -> None:
        nonlocal passed
        passed = True
        drawn.part = "denoise"
        drawn.step = max(drawn.step, 1)

    for name in models.QUANTIZABLE:
        if getattr(pipe, name, None) is not None:
            getattr(pipe, name).register_forward_pre_hook(began)
    cls = type(pipe.scheduler)

    def stepped(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal passed
        made = cls.step(self, *args, **kwargs)
        if passed:  # a pipeline with one scheduler for each frame, or one for sound, steps several times after a pass
            passed = False
            drawn.steps += 1
            drawn.step += 1
        return made

    # A method of the class: pipelines copy their scheduler.
    pipe.scheduler.__class__ = type(cls.__name__, (cls,), {"step": stepped})
    for name in ("vae", "vqvae", "audio_vae"):
        if getattr(pipe, name, None) is not None:
            _mark(getattr(pipe, name), drawn)


def _mark(vae: Any, drawn: Drawn) -> None:
    """Have the record say when the autoencoder runs."""
    for name in ("encode", "decode"):
        run = getattr(vae, name, None)
        if run is None:
            continue

        def marked(*args: Any, run: Any = run, name: str = name, **kwargs: Any) -> Any:
            before, drawn.part = drawn.part, name
            try:
                return run(*args, **kwargs)
            finally:
                drawn.part = before

        setattr(vae, name, marked)
