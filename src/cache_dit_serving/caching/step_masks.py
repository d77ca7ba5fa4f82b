"""Step masks: which steps of a generation compute, and which may reuse; by a policy's name, by bins, or one by one."""

from __future__ import annotations

import typing
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

MOST_STEPS = 1000
"""No model takes more; a bound on what a request can make the server count up to."""
Mask = tuple[Literal[0, 1], ...]
Policy = Literal["slow", "medium", "fast", "ultra"]
POLICIES: tuple[Policy, ...] = typing.get_args(Policy)


def tuple_of_list(value: object) -> object:
    """JSON and YAML have lists where a frozen value holds tuples."""
    return tuple(value) if isinstance(value, list) else value


class MaskBins(BaseModel):
    """A step mask by the lengths of its runs: compute the first `compute_bins[0]` steps, may reuse in the next
    `cache_bins[0]`, and so on in turn. Cut to the request's steps, which it must cover."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    compute_bins: tuple[Annotated[int, Field(ge=1, le=MOST_STEPS)], ...] = Field(min_length=1, max_length=MOST_STEPS)
    cache_bins: tuple[Annotated[int, Field(ge=1, le=MOST_STEPS)], ...] = Field(min_length=1, max_length=MOST_STEPS)

    _lists = field_validator("compute_bins", "cache_bins", mode="before")(tuple_of_list)

    @model_validator(mode="after")
    def _every_bin_is_used(self) -> Self:
        if len(self.compute_bins) - len(self.cache_bins) not in (0, 1):
            raise ValueError("compute_bins holds as many lengths as cache_bins, or one more")
        return self

    def mask(self, steps: int) -> list[int]:
        """1 for a step to compute, 0 for one that may be reused; shorter than `steps` where the bins do not cover."""
        runs: list[int] = []
        for index, computed in enumerate(self.compute_bins):
            cached = self.cache_bins[index] if index < len(self.cache_bins) else 0
            runs += [1] * computed + [0] * cached
            if len(runs) >= steps:
                break
        return runs[:steps]


def _kind_of_mask(value: object) -> str | None:
    kinds = {str: "[policy]", tuple: "[list]", dict: "[bins]", MaskBins: "[bins]"}
    return next((kind for cls, kind in kinds.items() if isinstance(value, cls)), None)


AnyMask = Annotated[
    Annotated[Policy, Tag("[policy]")]
    | Annotated[Mask, Field(max_length=MOST_STEPS), Tag("[list]")]
    | Annotated[MaskBins, Tag("[bins]")],
    # One kind's findings instead of all three's; the tags, in brackets, are left out of what callers read.
    Discriminator(
        _kind_of_mask,
        custom_error_type="mask_type",
        custom_error_message="should be slow, medium, fast or ultra, a list of 0 and 1, or compute_bins and cache_bins",
    ),
]


def fitted(mask: Policy | Mask | MaskBins, steps: int) -> list[int]:
    """The mask for a number of steps: 1 computes, 0 may reuse.

    Raises:
        ValueError: it cannot be fitted to that number; the message says which would do.
    """
    if isinstance(mask, MaskBins):
        runs = mask.mask(steps)
        if len(runs) < steps:
            raise ValueError(f"its bins cover {len(runs)} steps, not {steps}; make them longer")
        return runs
    if isinstance(mask, tuple):
        if len(mask) != steps:
            raise ValueError(f"it is a list for {len(mask)} steps; ask for num_inference_steps {len(mask)}")
        return list(mask)
    # cache_dit.steps_mask (1.5.3) fits its policies to 4, 6 and every number from 8.
    if steps < 8 and steps not in (4, 6):
        raise ValueError(f"the policy {mask} cannot be fitted to {steps} steps; ask for 4, 6, or 8 and more")
    # Here, not at the top: whoever only reads the settings needs no torch.
    import cache_dit

    return [int(step) for step in cache_dit.steps_mask(total_steps=steps, mask_policy=mask)]
