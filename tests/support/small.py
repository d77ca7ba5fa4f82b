"""Pipelines that draw a megapixel whatever they are asked for, made to draw a small picture.

What they compute stays as it is; only the sizes that their code has as constants are smaller.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

MEGAPIXEL = 1024 * 1024
LESS = 8
"""Times as short, each side."""


def draw_small() -> None:
    """Have the pipelines of this process do so, whoever makes them."""
    for name in ("qwenimage.pipeline_qwenimage_edit", "qwenimage.pipeline_qwenimage_edit_inpaint"):
        _scale_area(_module(name))
    _scale_area(_module("qwenimage.pipeline_qwenimage_edit_plus"))
    _scale_area(_module("longcat_image.pipeline_longcat_image_edit"))
    joy = _module("joyimage.image_processor")
    find = joy.find_best_bucket
    joy.find_best_bucket = lambda *args: tuple(side // LESS for side in find(*args))
    for name, cls in (("t2i", "Kandinsky5T2IPipeline"), ("i2i", "Kandinsky5I2IPipeline")):
        _after_init(getattr(_module(f"kandinsky5.pipeline_kandinsky_{name}"), cls), _small_resolutions)
    _after_init(_module("hidream_image.pipeline_hidream_image").HiDreamImagePipeline, _small_sample)


def _module(name: str) -> Any:
    return importlib.import_module(f"diffusers.pipelines.{name}")


def _scale_area(module: Any) -> None:
    calculate = module.calculate_dimensions

    @functools.wraps(calculate)
    def scaled(target_area: int, ratio: float) -> Any:
        return calculate(target_area // LESS**2 if target_area >= MEGAPIXEL else target_area, ratio)

    module.calculate_dimensions = scaled


def _after_init(cls: Any, then: Any) -> None:
    init = cls.__init__

    @functools.wraps(init)  # diffusers reads the names of its parameters
    def changed(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        then(self)

    cls.__init__ = changed


def _small_resolutions(pipe: Any) -> None:
    pipe.resolutions = [(width // LESS, height // LESS) for width, height in pipe.resolutions]


def _small_sample(pipe: Any) -> None:
    pipe.default_sample_size //= LESS
