"""Base classes of a request field in planning."""

from __future__ import annotations

from typing import Any, ClassVar

from cache_dit_serving.config.settings import Limits
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.kinds import KINDS
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.planning.draft import Draft
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.schemas.request import GenerateRequest

Schema = dict[str, Any]


class RequestField:
    """One field of :class:`GenerateRequest`: models that accept it, bounds, default, and arguments for the call.

    The base class describes a field that every model accepts and that gives the pipeline's call no argument.
    """

    name: str
    makes: MediaKind | None = None
    """Kind of output that the field applies to; models of other kinds do not accept it. None: all kinds."""
    ignorable: ClassVar[bool] = True
    """True if an answer that ignores the field is still useful. Ignoring also needs the operator's permission."""

    def asks_nothing(self, value: Any) -> bool:
        """Return whether a value requests the behaviour of a model without the field. It is accepted on every model."""
        return value is None or value == []

    def accepted(self, model: PlannedModel) -> bool:
        """Return whether the model honours the field."""
        return self.makes in (None, model.traits.makes)

    def why_not(self, model: PlannedModel) -> str:
        """Return the reason for a refusal, in brackets after a space; empty if the pipeline just lacks the field."""
        makes = model.traits.makes
        return "" if self.makes in (None, makes) else f" (it makes {KINDS[makes].answer_key})"

    def schema(self, model: PlannedModel) -> Schema:
        """Return JSON schema keywords of this model, which extend those of the request's schema."""
        return {}

    def check_limits(self, request: GenerateRequest, limits: Limits, *, tolerant: bool) -> None:
        """Refuse a value that the limits exclude on every model. Used before a model is loaded.

        Args:
            tolerant: adjust a value that the model does not take, where possible.

        Raises:
            InvalidRequest: as :meth:`check`.
        """

    def default(self, model: PlannedModel) -> Any:
        """Return the value for a request without the field; None if it has no nameable default."""
        return None

    def adjusted(self, value: Any, model: PlannedModel) -> Any:
        """Return the nearest value that the model takes. Used only on a server that adjusts and reports such values."""
        return value

    def no_effect(self, request: GenerateRequest, model: PlannedModel) -> str | None:
        """Return why other fields of the request disable this one, with the remedy; None if it has an effect.

        Such a request is refused; a tolerant server ignores the field and reports it.
        """
        return None

    def check(self, request: GenerateRequest, model: PlannedModel) -> None:
        """Refuse a value that the model does not take.

        Raises:
            InvalidRequest: the value is out of the model's bounds, or contradicts another field.
        """

    def arguments(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        """Return the field's arguments for the pipeline's call, from its value or its default. It has been checked."""
        return {}

    def recorded(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        """Return the effective value for the record in the output's file, if the call has it under another name."""
        return {}

    def fill_in(self, draft: Draft, request: GenerateRequest) -> None:
        """Check the field, and put all that it decides into the draft. Called for the fields that the model accepts.

        Raises:
            InvalidRequest: as :meth:`check`.
        """
        self.check(request, draft.model)
        draft.arguments |= self.arguments(request, draft.model)
        draft.recorded |= self.recorded(request, draft.model)


class PipelineField(RequestField):
    """A field that is an argument of the pipeline's call, by default under the field's name.

    By default it is accepted if the call has a parameter of this name.
    """

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
        InvalidRequest: the text exceeds `max_prompt_characters`; the message names the limit.
    """
    most = limits.max_prompt_characters
    if text is not None and len(text) > most:
        raise InvalidRequest(
            f"{name} has {len(text):,} characters; this server takes at most {most:,}", param=name, code="too_long"
        )
