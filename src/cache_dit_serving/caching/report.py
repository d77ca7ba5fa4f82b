"""Report of the cache's effect on a generation, as answers show it."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from cache_dit_serving.caching.settings import ReasonCode


class DiffQuantiles(BaseModel):
    """Quantiles of the relative L1 residual differences that the cache decided on."""

    min: float
    p25: float
    median: float
    p75: float
    max: float


class CacheReport(BaseModel):
    """Effect of the cache on this request."""

    enabled: bool
    engaged: bool = Field(description="true if any step reused activations.")
    reason: str | None = Field(None, description="Reason that nothing was reused, or the defect in what was reused.")
    reason_code: ReasonCode | None = Field(None, description="The same as one word.")
    speed: str = Field(description="The speed whose settings these are; custom where they are no named speed's.")
    steps: int = Field(description="Denoising steps, over all images.")
    cached_steps: int = Field(description="Steps in which blocks were reused instead of computed.")
    computed_steps: int = Field(description="The other steps.")
    executed_steps: int = Field(description="Steps by cache-dit's own count: equal to steps, or the pairing is wrong.")
    blocks: int = Field(
        0, description="Runs of transformer blocks, reused or not; 0 where there is no cache to count them."
    )
    reused_blocks: int = Field(
        0, description="Runs of transformer blocks that were reused instead of computed, with any cache type."
    )
    residual_diff: DiffQuantiles | None = None
    nan_diffs: int = Field(
        0, description="Residual differences that are not numbers: an alarm about the model's values."
    )
    redrawn: int = Field(
        0,
        description="Images drawn twice because guidance made other forward passes than planned; the second is right.",
    )
    settings: dict[str, Any] | None = Field(
        None, description="Settings that took effect. Send them back as `cache` to repeat the run."
    )
    settings_hash: str | None = Field(None, description="Ten hexadecimal digits that name the settings.")


def _from_json(value: Any) -> Any:
    return math.nan if value is None else value


ResidualDiff = Annotated[
    float, BeforeValidator(_from_json), WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]})
]
"""Relative L1 residual difference. NaN, which shows that the model's values are broken, is null in JSON."""


class BlockListStats(BaseModel):
    """The cache's record of one block list over one image.

    `diffs` maps a step to its residual difference (DBCache) or to one per block (DBPrune); null stands for NaN.
    """

    transformer: str
    block_list: str
    cached_steps: list[int]
    diffs: dict[int, ResidualDiff | list[ResidualDiff]]
    cfg_cached_steps: list[int] = Field(description="Cached steps of guidance's second forward pass.")
    cfg_diffs: dict[int, ResidualDiff | list[ResidualDiff]]
    blocks: int = Field(description="Runs of its blocks without a cache, over both passes.")
    reused_blocks: int = Field(description="Runs of its blocks that were reused.")
