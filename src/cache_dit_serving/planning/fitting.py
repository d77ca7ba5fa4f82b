"""What becomes of pictures and videos of another size than the one that is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from cache_dit_serving.media.fit import Fit, bars_of, fitted, keeps_shape
from cache_dit_serving.media.inputs import Inputs
from cache_dit_serving.planning.fields.inputs import FIELDS_OF_INPUTS
from cache_dit_serving.planning.tasks import SIZED_TASKS, Input, Task

INPUTS_OF_FIELDS = {field: kind for kind, field in FIELDS_OF_INPUTS.items()}
PIPELINES_OWN: dict[tuple[str, Input], Fit | None] = {
    ("Cosmos3OmniPipeline", Input.IMAGE): "crop",
    ("WanVACEPipeline", Input.VIDEO): None,
}
"""How classes of diffusers 0.42 bring an input to the size that is drawn, where they do not stretch it.

None: they do not. VACE leaves a smaller video as it is, and lays its parts beside those of the larger drawing.
"""


@dataclass(frozen=True)
class Fitting:
    """The way of one picture, or of all frames of a video, to the size that is drawn."""

    field: str
    """Names it in the request: `image_urls.0`, `video_url`."""
    brought: tuple[int, int]
    """Its width and height, px."""
    drawn: tuple[int, int]
    fit: Fit
    by_pipeline: bool
    """Whether the pipeline's own resizing does just that, and is left to it."""

    @property
    def changes_shape(self) -> bool:
        """Whether pixels are cut off, added or stretched."""
        return not keeps_shape(self.brought, self.drawn)

    def resized(self, image: Image.Image) -> Image.Image:
        """The picture, or one of the frames, at the size that is drawn."""
        return fitted(image, self.drawn, self.fit, bars=bars_of(self.field))


Resize = Callable[[Fitting, Image.Image], Image.Image]
"""As :meth:`Fitting.resized`, maybe in another process."""


def fittings_of(
    task: Task, arguments: Mapping[str, Any], inputs: Inputs, fit: Fit, pipeline_class: str
) -> tuple[Fitting, ...]:
    """The inputs of a call that come to another shape, or that are resized before the pipeline is given them.

    A picture that a drawing begins from is always resized before: most pipelines would do the same; Z-Image's take the
    size of the picture for that of the latents. A picture or a video that leads a drawing otherwise comes to the
    pipeline as it is, unless its shape would be lost there. A picture to edit stays: those pipelines have sizes of
    their own for it, and aMUSEd's drawings are as large as the picture.

    Args:
        arguments: of the pipeline's call.
    """
    if task not in SIZED_TASKS or not {"width", "height"} <= arguments.keys():
        return ()
    drawn = arguments["width"], arguments["height"]
    found = []
    for field, brought in inputs.sizes.items():
        kind = INPUTS_OF_FIELDS[field.partition(".")[0]]
        own = PIPELINES_OWN.get((pipeline_class, kind), "stretch")
        if "strength" in arguments and kind is not Input.VIDEO:
            own = None
        keeps = keeps_shape(brought, drawn)
        by_pipeline = own is not None and (keeps or own == fit)
        if brought != drawn and not (keeps and by_pipeline):
            found.append(Fitting(field, brought, drawn, fit, by_pipeline))
    return tuple(found)
