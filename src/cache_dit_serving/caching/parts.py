"""Cache settings for a part of the model: one of its transformers, or one of its block lists."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cache_dit_serving.caching.step_masks import MOST_STEPS

Key = TypeVar("Key")
Value = TypeVar("Value")
MOST_PARTS = 16


class PartSettings(BaseModel):
    """Settings of one part that differ from the whole model's; a field left out keeps the whole model's value."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    Fn_compute_blocks: int | None = Field(None, ge=1)
    Bn_compute_blocks: int | None = Field(None, ge=0)
    residual_diff_threshold: float | None = Field(None, ge=0)
    max_accumulated_residual_diff_threshold: float | None = Field(None, gt=0)
    max_warmup_steps: int | None = Field(None, ge=0, le=MOST_STEPS)
    warmup_interval: int | None = Field(None, ge=1, le=MOST_STEPS)
    max_cached_steps: int | None = Field(None, ge=-1)
    max_continuous_cached_steps: int | None = Field(None, ge=-1)

    @property
    def given(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


class HashableDict(dict[Key, Value]):
    """Dict that is never changed after its creation, so that the settings that hold it can be hashed."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


Parts = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=100)], PartSettings],
    Field(max_length=MOST_PARTS),
    AfterValidator(HashableDict),
]
"""Settings by the name of a transformer (`transformer_2`) or of a block list (`single_transformer_blocks`)."""
PARTS = ("per_transformer", "per_block_list")
NO_PARTS: HashableDict[str, PartSettings] = HashableDict()
