"""A request apart from its connection, so that it can be kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cache_dit_serving.engine.caller import SCOPES, Caller
from cache_dit_serving.engine.sent_as import SentAs
from cache_dit_serving.errors import ClientGone
from cache_dit_serving.jobs.kept_request import KeptIntake
from cache_dit_serving.media.decode.decoder import MaskKind
from cache_dit_serving.schemas.answers import RequestWarning
from cache_dit_serving.schemas.request import GenerateRequest, JobRequest

T = TypeVar("T")


@dataclass(frozen=True)
class Intake:
    """A request, and all that its connection said beside it."""

    request: GenerateRequest
    id: str
    lenient: bool
    """Ignore and report fields that the model cannot honour, in place of a refusal."""
    warnings: tuple[RequestWarning, ...]
    """Adjustments that were made as the body was read."""
    uploads: tuple[str | bytes, ...]
    """Files that came with it."""
    base_url: str
    """Base URL of this server, as its client calls it."""
    caller: Caller
    sent_as: SentAs = field(default_factory=SentAs)
    mask_kind: MaskKind = "mask"
    gone: Callable[[], Awaitable[object]] | None = None
    """Function that returns once the client has closed the connection; None where no client waits."""

    async def while_connected(self, work: Coroutine[Any, Any, T]) -> T:
        """Do some work, and cancel it when the client leaves.

        Raises:
            ClientGone: it left.
        """
        if self.gone is None:
            return await work
        working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(self.gone())
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise ClientGone("the client closed the connection; its request was not begun")
        finally:
            working.cancel()
            leaving.cancel()

    async def left(self) -> None:
        """Wait until the client has closed the connection; for ever where no client waits."""
        await (asyncio.Event().wait() if self.gone is None else self.gone())

    def dumped(self) -> str:
        """Return the request as JSON, without its uploads."""
        return KeptIntake(
            request=self.request.model_dump(mode="json", exclude_unset=True),
            id=self.id,
            lenient=self.lenient,
            warnings=self.warnings,
            base_url=self.base_url,
            caller=self.caller.name,
            names=dict(self.sent_as.names),
            parts=dict(self.sent_as.parts),
            mask_kind=self.mask_kind,
        ).model_dump_json()


def read(dumped: str, uploads: list[str | bytes]) -> Intake:
    """Return the request that :meth:`Intake.dumped` wrote, with its uploads.

    Raises:
        ValidationError: it is of another version, which had other fields.
    """
    kept = KeptIntake.model_validate_json(dumped)
    return Intake(
        JobRequest.model_validate(kept.request),
        id=kept.id,
        lenient=kept.lenient,
        warnings=kept.warnings,
        uploads=tuple(uploads),
        base_url=kept.base_url,
        caller=Caller(kept.caller, SCOPES),  # what it asks for was found allowed
        sent_as=SentAs(kept.names, kept.parts),
        mask_kind=kept.mask_kind,
    )
