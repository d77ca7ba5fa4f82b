"""Step masks: a mark of each step as computed (1) or open to reuse (0), given as a policy's name, bins or a list."""

from __future__ import annotations

import typing
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

MOST_STEPS = 1000
"""Upper bound of every step count in settings, which bounds the loops over steps that a request can cause."""
Mask = tuple[Literal[0, 1], ...]
Policy = Literal["slow", "medium", "fast", "ultra"]
POLICIES: tuple[Policy, ...] = typing.get_args(Policy)


def tuple_of_list(value: object) -> object:
    """Return a list of JSON or YAML as a tuple, which a frozen value can hold; other values as they are."""
    return tuple(value) if isinstance(value, list) else value


class MaskBins(BaseModel):
    """Step mask as lengths of runs: `compute_bins[0]` computed steps, `cache_bins[0]` open to reuse, and so on in turn.

    The bins must cover the request's steps. Steps beyond those are cut off.
    """

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
        """Return 1 for each computed step, 0 for each open to reuse; shorter than `steps` if the bins cover fewer."""
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
    # Without the discriminator an error lists findings of all three kinds. Tags in brackets are left out of errors.
    Discriminator(
        _kind_of_mask,
        custom_error_type="mask_type",
        custom_error_message="should be slow, medium, fast or ultra, a list of 0 and 1, or compute_bins and cache_bins",
    ),
]


def fitted(mask: Policy | Mask | MaskBins, steps: int) -> list[int]:
    """Return the mask for a number of steps: 1 for a computed step, 0 for one open to reuse.

    Raises:
        ValueError: the mask cannot be fitted to that number; the message names the remedy.
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
    # Imported here because reading the settings must not need torch.
    import cache_dit

    return [int(step) for step in cache_dit.steps_mask(total_steps=steps, mask_policy=mask)]
