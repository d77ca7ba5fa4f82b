"""Speeds for a model that has none measured, around the settings that it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cache_dit_serving.caching.parts import PARTS
from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.caching.step_masks import POLICIES

SCALED = ("residual_diff_threshold", "max_warmup_steps", "max_continuous_cached_steps")


def upstream_settings(usual_steps: int) -> CacheSettings:
    """Return the defaults of cache-dit 1.5.3's command line. The warm-up is at most a third of `usual_steps`."""
    return CacheSettings(
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        residual_diff_threshold=0.12,
        max_warmup_steps=min(8, max(1, usual_steps // 3)),
        max_continuous_cached_steps=3,
    )


def derive(balanced: CacheSettings) -> dict[Speed, CacheSettings]:
    """Return speeds around given settings, for a model that has none measured.

    `high` halves the threshold and reuses at most twice in a row. `fast` doubles the threshold (below 1, where
    cache-dit would always reuse), halves the warm-up, doubles the limit in a row and, where no calibrator is on,
    extrapolates with TaylorSeer. A static mask has no threshold. There `high` is the same mask with the dynamic policy.
    `fast` is the next faster policy if the mask is a policy's name, and absent otherwise.
    """
    if balanced.reuses_without_asking:
        speeds: dict[Speed, CacheSettings] = {
            "high": balanced.overridden({"steps_computation_policy": "dynamic"}),
            "balanced": balanced,
        }
        mask = balanced.steps_computation_mask
        if isinstance(mask, str) and mask != POLICIES[-1]:
            faster = POLICIES[POLICIES.index(mask) + 1]
            speeds["fast"] = balanced.overridden({"steps_computation_mask": faster})
        return speeds
    own = {name: getattr(balanced, name) for name in SCALED}
    high, fast = _less(own), _more(own)
    if balanced.max_dynamic_prune_threshold is not None:
        fast["max_dynamic_prune_threshold"] = balanced.max_dynamic_prune_threshold * 2
    if balanced.cache_type == "DBCache" and balanced.calibrator is None:
        fast["enable_taylorseer"] = True
    for field in PARTS:
        parts = getattr(balanced, field)
        high[field] = {name: part.given | _less(part.given) for name, part in parts.items()}
        fast[field] = {name: part.given | _more(part.given) for name, part in parts.items()}
    return {"high": balanced.overridden(high), "balanced": balanced, "fast": balanced.overridden(fast)}


def _less(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes to settings of the model, or of a part, that make them reuse less."""
    changes: dict[str, Any] = {}
    if (threshold := given.get("residual_diff_threshold")) is not None:
        changes["residual_diff_threshold"] = threshold / 2
    if (in_a_row := given.get("max_continuous_cached_steps")) is not None:
        changes["max_continuous_cached_steps"] = 2 if in_a_row < 0 else min(2, in_a_row)
    return changes


def _more(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes to settings of the model, or of a part, that make them reuse more."""
    changes: dict[str, Any] = {}
    if (threshold := given.get("residual_diff_threshold")) is not None:
        changes["residual_diff_threshold"] = max(threshold, min(0.95, threshold * 2))
    if (warm_up := given.get("max_warmup_steps")) is not None:
        changes["max_warmup_steps"] = warm_up // 2
    if (in_a_row := given.get("max_continuous_cached_steps")) is not None:
        changes["max_continuous_cached_steps"] = in_a_row if in_a_row < 0 else in_a_row * 2
    return changes
