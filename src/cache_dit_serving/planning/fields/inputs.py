"""Fields of input images and videos, `strength` and `fit`."""

from __future__ import annotations

from typing import Any, ClassVar

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.fit import DEFAULT_FIT, Fit
from cache_dit_serving.planning.draft import Draft
from cache_dit_serving.planning.fields.field import PipelineField, RequestField, Schema
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.planning.tasks import SIZED_TASKS, Input
from cache_dit_serving.schemas.request import GenerateRequest


class InputField(RequestField):
    """An input image or video. It is decoded before planning; :mod:`planning.inputs` makes the call's arguments."""

    brings: ClassVar[Input]
    ignorable = False

    def accepted(self, model: PlannedModel) -> bool:
        return self.brings in model.traits.brought


class ImageUrls(InputField):
    name = "image_urls"
    brings = Input.IMAGE

    def schema(self, model: PlannedModel) -> Schema:
        return {} if model.traits.several_images else {"maxItems": 1}


class MaskUrl(InputField):
    name = "mask_url"
    brings = Input.MASK


class ControlUrl(InputField):
    name = "control_url"
    brings = Input.CONTROL


class LastImageUrl(InputField):
    name = "last_image_url"
    brings = Input.LAST_IMAGE


class VideoUrl(InputField):
    name = "video_url"
    brings = Input.VIDEO


INPUT_FIELDS: tuple[InputField, ...] = (ImageUrls(), MaskUrl(), ControlUrl(), LastImageUrl(), VideoUrl())
FIELDS_OF_INPUTS = {field.brings: field.name for field in INPUT_FIELDS}


class Strength(PipelineField):
    name = "strength"
    ignorable = False

    def accepted(self, model: PlannedModel) -> bool:
        return model.traits.strength is not None

    def default(self, model: PlannedModel) -> float:
        assert model.traits.strength is not None
        return model.defaults.strength or model.traits.strength.default

    def fill_in(self, draft: Draft, request: GenerateRequest) -> None:
        """Shorten the schedule: strength skips its first steps.

        Raises:
            InvalidRequest: it leaves no step.
        """
        super().fill_in(draft, request)
        assert draft.model.traits.strength is not None
        strength = request.strength if request.strength is not None else self.default(draft.model)
        run = draft.model.traits.strength.steps_run(draft.steps, strength)
        if run < 1:
            raise InvalidRequest(
                f"a strength of {request.strength} leaves none of {draft.steps} steps; send a greater one, or more "
                "steps",
                param="strength",
            )
        draft.steps = run


class FitField(RequestField):
    name = "fit"
    ignorable = False

    def accepted(self, model: PlannedModel) -> bool:
        return bool(model.traits.tasks & SIZED_TASKS) and model.traits.takes("width")

    def default(self, model: PlannedModel) -> Fit:
        return DEFAULT_FIT

    def no_effect(self, request: GenerateRequest, model: PlannedModel) -> str | None:
        if any(getattr(request, field) for field in FIELDS_OF_INPUTS.values()):
            return None
        return "fit is about a picture or a video, and none is sent; leave fit out"

    def recorded(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        return {} if request.fit is None else {"fit": request.fit}

    def fill_in(self, draft: Draft, request: GenerateRequest) -> None:
        super().fill_in(draft, request)
        draft.fit = request.fit or DEFAULT_FIT


FIELDS: tuple[RequestField, ...] = (*INPUT_FIELDS, Strength(), FitField())
