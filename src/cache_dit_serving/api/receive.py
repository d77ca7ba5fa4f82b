"""A request taken off its connection."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request

from cache_dit_serving.api.request_state import state_of
from cache_dit_serving.engine.intake import Intake
from cache_dit_serving.media.decode.decoder import MaskKind
from cache_dit_serving.schemas.request import GenerateRequest


def received(request: GenerateRequest, http: Request, mask_kind: MaskKind = "mask") -> Intake:
    """Return the intake of a request whose body was checked.

    Args:
        request: the body, or its translation from another dialect.
        mask_kind: reading of its mask.
    """
    state = state_of(http.scope)
    assert state.body is not None
    return Intake(
        request,
        id=state.id,
        lenient=state.lenient,
        warnings=state.body.warnings,
        uploads=state.body.uploads,
        base_url=str(http.base_url).rstrip("/"),
        caller=state.caller,
        sent_as=state.body.sent_as,
        mask_kind=mask_kind,
        gone=partial(gone, http),
    )


async def gone(http: Request) -> None:
    """Return when the client has closed the connection. What is left of the body is dropped."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
