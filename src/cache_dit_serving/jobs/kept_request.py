"""The JSON of a job's request in the database: its layout, which every reader and writer has from here."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from cache_dit_serving.media.decode.decoder import MaskKind
from cache_dit_serving.schemas.answers import RequestWarning


class KeptRequest(BaseModel):
    """The part that says what a job was asked, which every version of the server has written."""

    request: dict[str, Any]
    """Fields that the request set."""
    base_url: str
    """URL of the server, as its client called it."""


class KeptIntake(KeptRequest):
    """All that another server needs to run a job."""

    id: str
    lenient: bool
    warnings: tuple[RequestWarning, ...]
    caller: str = ""
    names: dict[str, str] = {}
    parts: dict[str, str] = {}
    mask_kind: MaskKind = "mask"
