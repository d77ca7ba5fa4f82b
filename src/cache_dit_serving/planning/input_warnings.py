"""Warnings about input images and videos: a changed aspect ratio, or a repeated seed."""

from __future__ import annotations

from cache_dit_serving.planning.fitting import Fitting
from cache_dit_serving.planning.planned import Planned
from cache_dit_serving.schemas.answers import RequestWarning

DONE = {
    "crop": "what juts out of that shape is cut off",
    "pad": "bars fill what it leaves free",
    "stretch": "it is stretched to that shape",
}
"""Description of each `fit`, used in warnings."""


def input_warnings(planned: Planned) -> tuple[RequestWarning, ...]:
    """Return warnings about the inputs of a request. The inputs must not have been resized yet."""
    return (*_of_shapes(planned), *_of_seeds(planned))


def _of_shapes(planned: Planned) -> list[RequestWarning]:
    return [
        RequestWarning(param=fitting.field, code="adjusted", message=_of_shape(fitting))
        for fitting in planned.fittings
        if fitting.changes_shape
    ]


def _of_shape(fitting: Fitting) -> str:
    others = " and ".join(fit for fit in DONE if fit != fitting.fit)
    (width, height), (drawn_width, drawn_height) = fitting.brought, fitting.drawn
    return (
        f"{fitting.field} is {width} x {height} pixels and {drawn_width} x {drawn_height} are drawn: "
        f"{DONE[fitting.fit]} (fit {fitting.fit}; there are also {others})"
    )


def _of_seeds(planned: Planned) -> list[RequestWarning]:
    """Return warnings for images that were drawn with a seed and size of this request.

    The same noise is then added to the image it made, and denoising does not remove their common part.
    """
    seeds = {call.seed for call in planned.calls}
    size = planned.call.arguments.get("width"), planned.call.arguments.get("height")
    return [
        RequestWarning(
            param="seed",
            code="repeated_seed",
            message=f"{field} was drawn with seed {image.origin.seed} at this size, and the same noise again mars "
            "what is drawn from it; send another seed",
        )
        for field, image in planned.inputs.images_by_field.items()
        if image.origin and image.origin.seed in seeds and (image.origin.width, image.origin.height) == size
    ]
