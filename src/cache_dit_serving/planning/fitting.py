"""Fitting of input images and videos whose size differs from the output's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from cache_dit_serving.media.fit import Fit, bars_of, fitted, keeps_shape
from cache_dit_serving.media.inputs import Inputs
from cache_dit_serving.planning.families import family_of
from cache_dit_serving.planning.fields.inputs import FIELDS_OF_INPUTS
from cache_dit_serving.planning.tasks import SIZED_TASKS, Input, Task

INPUTS_OF_FIELDS = {field: kind for kind, field in FIELDS_OF_INPUTS.items()}


@dataclass(frozen=True)
class Fitting:
    """Resizing of one input image, or of all frames of the input video, to the output size."""

    field: str
    """Field of the request: `image_urls.0`, `video_url`."""
    brought: tuple[int, int]
    """(width, height) of the input, pixels."""
    drawn: tuple[int, int]
    """(width, height) of the output, pixels."""
    fit: Fit
    by_pipeline: bool
    """True if the pipeline's own resizing gives this result, so that the server does not resize."""

    @property
    def changes_shape(self) -> bool:
        """True if pixels are cut off, added or stretched."""
        return not keeps_shape(self.brought, self.drawn)

    def resized(self, image: Image.Image) -> Image.Image:
        """Return the image, or one of the frames, at the output size."""
        return fitted(image, self.drawn, self.fit, bars=bars_of(self.field))


Resize = Callable[[Fitting, Image.Image], Image.Image]
"""Function like :meth:`Fitting.resized`. It may run in another process."""


def fittings_of(
    task: Task, arguments: Mapping[str, Any], inputs: Inputs, fit: Fit, pipeline_class: str
) -> tuple[Fitting, ...]:
    """Return the fittings of the inputs whose aspect ratio changes or that the server resizes before the call.

    - An image that denoising starts from (`strength`) is always resized by the server. Most pipelines would do the
      same; Z-Image's would take the image's size for the latents'.
    - Another image or video goes to the pipeline unchanged, unless its resizing would give another result than `fit`.
    - An image to edit is never resized: the editing pipelines choose sizes of their own, and aMUSEd's output is as
      large as the image.

    Args:
        arguments: arguments of the pipeline's call.
    """
    if task not in SIZED_TASKS or not {"width", "height"} <= arguments.keys():
        return ()
    drawn = arguments["width"], arguments["height"]
    found = []
    for field, brought in inputs.sizes.items():
        kind = INPUTS_OF_FIELDS[field.partition(".")[0]]
        own = _own_fit(pipeline_class, kind)
        if "strength" in arguments and kind is not Input.VIDEO:
            own = None
        keeps = keeps_shape(brought, drawn)
        by_pipeline = own is not None and (keeps or own == fit)
        if brought != drawn and not (keeps and by_pipeline):
            found.append(Fitting(field, brought, drawn, fit, by_pipeline))
    return tuple(found)


def _own_fit(pipeline_class: str, kind: Input) -> Fit | None:
    """Return the resizing inside a pipeline class; None if it does not resize."""
    family = family_of(pipeline_class)
    return {Input.IMAGE: family.fit_of_image, Input.VIDEO: family.fit_of_video}.get(kind, "stretch")
