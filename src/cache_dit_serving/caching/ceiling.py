"""Comparison of cache settings by how much they may reuse, to hold requests to a server's ceiling."""

from __future__ import annotations

import math

from cache_dit_serving.caching.settings import CacheSettings


def exceeds(settings: CacheSettings, ceiling: CacheSettings, steps: int, *, passes: int) -> str | None:
    """Return the first setting by which `settings` may reuse more than `ceiling` in `steps` steps; None if none does.

    Each part of the model is compared by itself. Calibrators are not compared here: they change the values of reused
    blocks, not the amount of reuse. `SpeedLadder` checks them.
    """
    parts = settings.parts(ceiling)
    compared = (_part_exceeds(settings.of(*part), ceiling.of(*part), steps, passes=passes) for part in parts)
    return next((name for name in compared if name is not None), None)


def _part_exceeds(settings: CacheSettings, ceiling: CacheSettings, steps: int, *, passes: int) -> str | None:
    if settings.cache_type != ceiling.cache_type:
        return "cache_type"  # their thresholds mean different things
    if ceiling.force_refresh_step_hint is not None:
        for name in ("force_refresh_step_hint", "force_refresh_step_policy"):
            if getattr(settings, name) != getattr(ceiling, name):
                return name  # another refresh restarts warm-up and counts at other steps
    most = {name: limit for name, limit, _ in _limits(ceiling, settings)}
    for name, limit, cause in _limits(settings, ceiling):
        if limit > most[name]:
            return cause
    if too_far := _further(settings, ceiling, steps, passes) or _prunes_more(settings, ceiling):
        return too_far
    return None


def _further(settings: CacheSettings, ceiling: CacheSettings, steps: int, passes: int) -> str | None:
    """Return the setting by which a step may be reused at a greater residual difference than `ceiling` allows.

    None if there is no such step. A step that `ceiling` always computes has a greatest difference of 0.
    """
    try:
        allowed = ceiling.max_difference_by_step(steps, passes=passes)
    except ValueError:  # the ceiling's own mask is for other numbers of steps
        return "steps_computation_mask"
    if all(
        own <= most for own, most in zip(settings.max_difference_by_step(steps, passes=passes), allowed, strict=True)
    ):
        return None
    structural = ("steps_computation_policy", "steps_computation_mask", "force_refresh_step_hint")
    for name in (*structural, "max_warmup_steps", "warmup_interval"):
        if getattr(settings, name) != getattr(ceiling, name):
            return name
    return "residual_diff_threshold"


def _prunes_more(settings: CacheSettings, ceiling: CacheSettings) -> str | None:
    """Return the first of DBPrune's own settings that may reuse more than `ceiling`'s; None if none does.

    The rise of a dynamic threshold depends on the image's differences. It cannot be compared with a fixed threshold,
    so it counts as exceeding one.
    """
    if settings.cache_type != "DBPrune":
        return None
    if not set(ceiling.non_prune_block_ids) <= set(settings.non_prune_block_ids):
        return "non_prune_block_ids"
    if settings.force_reduce_calibrator_vram != ceiling.force_reduce_calibrator_vram:
        return "force_reduce_calibrator_vram"  # fewer values are compared, which gives another difference
    if settings.reuses_without_asking:
        return None
    if settings.residual_diff_threshold > ceiling.residual_diff_threshold:
        return "residual_diff_threshold"
    if not settings.enable_dynamic_prune_threshold:
        return None
    if not ceiling.enable_dynamic_prune_threshold:
        return "enable_dynamic_prune_threshold"
    if settings.dynamic_prune_threshold_relax_ratio > ceiling.dynamic_prune_threshold_relax_ratio:
        return "dynamic_prune_threshold_relax_ratio"
    return None


def _limits(settings: CacheSettings, other: CacheSettings) -> list[tuple[str, float, str]]:
    """Return (limit's name, bound, setting to report) for each limit on reuse; a greater bound allows more.

    A static mask ignores the limits on cached steps. A forced refresh that `other` lacks restarts the counts. In both
    cases the bound is infinite, and the setting to report is the one that lifts the limit.
    """
    always = settings.reuses_without_asking
    refreshed = settings.force_refresh_step_hint is not None and other.force_refresh_step_hint is None
    lifted_by = "steps_computation_policy" if always else "force_refresh_step_hint" if refreshed else None
    accumulated, cached = "max_accumulated_residual_diff_threshold", "max_cached_steps"
    in_a_row = "max_continuous_cached_steps"
    return [
        (
            accumulated,
            math.inf if lifted_by else limit_or_infinity(getattr(settings, accumulated)),
            lifted_by or accumulated,
        ),
        (cached, math.inf if lifted_by else limit_or_infinity(settings.max_cached_steps), lifted_by or cached),
        (
            in_a_row,
            math.inf if always else limit_or_infinity(settings.max_continuous_cached_steps),
            "steps_computation_policy" if always else in_a_row,
        ),
        ("Fn_compute_blocks", -settings.Fn_compute_blocks, "Fn_compute_blocks"),
        ("Bn_compute_blocks", -settings.Bn_compute_blocks, "Bn_compute_blocks"),
        ("cfg_diff_compute_separate", 0 if settings.cfg_diff_compute_separate else 1, "cfg_diff_compute_separate"),
    ]


def limit_or_infinity(value: float | None) -> float:
    """Return a limit as a number: None and negative values, which mean no limit, become infinity."""
    return math.inf if value is None or value < 0 else value
