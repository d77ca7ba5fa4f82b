"""A part of planning: everything about one field of a request."""

from __future__ import annotations

from typing import Any, ClassVar

from cache_dit_serving.config.settings import Limits
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.schemas.request import GenerateRequest

Schema = dict[str, Any]


class RequestField:
    """One field of :class:`GenerateRequest`: when a model takes it, its bounds, its default, what it gives the call.

    This class by itself is a field that the server honours on every model and the pipeline does not see.
    """

    name: ClassVar[str]
    makes: ClassVar[MediaKind | None] = None
    """The kind of output that the field is about: models of another kind do not take it. None: all kinds."""
    ignorable: ClassVar[bool] = True
    """Whether an answer that ignores the field is still of use to its caller, where the operator allows that."""

    def asks_nothing(self, value: Any) -> bool:
        """Whether a value stands for what a model without the field does anyway; accepted on every model."""
        return value is None or value == []

    def accepted(self, model: PlannedModel) -> bool:
        """Whether the loaded model honours the field."""
        return self.makes in (None, model.traits.makes)

    def why_not(self, model: PlannedModel) -> str:
        """The reason beside a refusal, in brackets, where there is more to say than that the pipeline takes none."""
        return "" if self.makes in (None, model.traits.makes) else f" (it makes {model.traits.makes.plural})"

    def schema(self, model: PlannedModel) -> Schema:
        """JSON schema keywords that hold on this model beside those of the request's own schema."""
        return {}

    def check_limits(self, request: GenerateRequest, limits: Limits, *, tolerant: bool) -> None:
        """Refuse a value that the configuration's limits rule out on every model, for a caller that has none loaded.

        Args:
            tolerant: whether a value beside the model's is adjusted where it can be.

        Raises:
            InvalidRequest: as :meth:`arguments`.
        """

    def default(self, model: PlannedModel) -> Any:
        """The value of a request that leaves the field out; None where there is none to name."""
        return None

    def adjusted(self, value: Any, model: PlannedModel) -> Any:
        """The nearest value that the model takes, where the operator has such values adjusted and reported."""
        return value

    def no_effect(self, request: GenerateRequest, model: PlannedModel) -> str | None:
        """Why the other fields of a request leave this one without effect, and the remedy; None where it has one.

        Refused, or where the operator or the request has it so, ignored and reported.
        """
        return None

    def arguments(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        """What the field gives the pipeline's call, its default included.

        Raises:
            InvalidRequest: the value is out of bounds here, or contradicts another field.
        """
        return {}

    def recorded(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        """The field as it was used, for the record in the output's file, where the call has it under another name."""
        return {}


class PipelineField(RequestField):
    """A field that goes to the pipeline under the same name, where its call takes it."""

    def accepted(self, model: PlannedModel) -> bool:
        return model.traits.takes(self.name)

    def default(self, model: PlannedModel) -> Any:
        return getattr(model.defaults, self.name, None)

    def arguments(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        asked = getattr(request, self.name)
        value = asked if asked is not None else self.default(model)
        return {} if value is None else {self.name: value}


def check_length(name: str, text: str | None, limits: Limits) -> None:
    """Refuse a text longer than the operator's limit.

    Raises:
        InvalidRequest: naming the limit.
    """
    most = limits.max_prompt_characters
    if text is not None and len(text) > most:
        raise InvalidRequest(
            f"{name} has {len(text):,} characters; this server takes at most {most:,}", param=name, code="too_long"
        )
