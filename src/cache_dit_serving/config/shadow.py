"""Settings of shadow runs: cached generations that are drawn again without the cache, and compared."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cache_dit_serving.config.safety import ADDRESS
from cache_dit_serving.section import Section


class ShadowSettings(Section):
    """Cached generations that are drawn again without the cache while nothing waits, and compared. Off by default."""

    share: float = Field(
        0, ge=0, le=1, description="Share of the cached generations that are drawn again, at random; 0: none."
    )
    at_most: float = Field(
        0.05, gt=0, le=1, description="Share of the time since the start that these runs may take, at most."
    )
    keep: bool = Field(
        False,
        description="Keep both outputs, their difference, and the request with its prompt beside the other outputs, "
        "for as long as those are kept. false: the figures alone.",
    )
    webhook_url: Annotated[str, Field(pattern=ADDRESS)] | None = Field(
        None,
        description="Address that is told when a speed is lowered or offered again; its host must be in "
        "`webhooks.hosts`, whose secret signs the message. Left out: nobody is told.",
    )
