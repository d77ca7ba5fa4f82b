"""A request taken off its connection."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request

from cache_dit_serving.api.access import caller_of
from cache_dit_serving.api.answering import request_id_of
from cache_dit_serving.engine.intake import Intake
from cache_dit_serving.media.decode.decoder import MaskKind
from cache_dit_serving.schemas.request import GenerateRequest


def received(request: GenerateRequest, http: Request, mask_kind: MaskKind = "mask") -> Intake:
    """What came over a connection, whose body was checked.

    Args:
        mask_kind: how its mask is read.
    """
    state = http.scope["state"]
    return Intake(
        request,
        id=request_id_of(http.scope),
        lenient=state["lenient"],
        warnings=tuple(state["warnings"]),
        uploads=tuple(state["uploads"]),
        base_url=str(http.base_url).rstrip("/"),
        caller=caller_of(http.scope),
        sent_as=state["sent_as"],
        mask_kind=mask_kind,
        gone=partial(gone, http),
    )


async def gone(http: Request) -> None:
    """Returns when the client has closed the connection; the request's body must have been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
