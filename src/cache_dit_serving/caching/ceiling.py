"""Which cache settings may approximate more than others: what a server's ceiling is held to."""

from __future__ import annotations

import math

from cache_dit_serving.caching.settings import CacheSettings


def exceeds(settings: CacheSettings, ceiling: CacheSettings, steps: int, *, passes: int) -> str | None:
    """The first setting by which `settings` may reuse more than `ceiling` does in so many steps; None where none.

    Each part of the model is compared by itself. Calibrators are not compared: they change what a reused step is filled
    with (see `SpeedLadder`).
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
                return name  # another refresh begins warm-up and counts anew at other steps
    most = {name: limit for name, limit, _ in _limits(ceiling, settings)}
    for name, limit, cause in _limits(settings, ceiling):
        if limit > most[name]:
            return cause
    if too_far := _further(settings, ceiling, steps, passes) or _prunes_more(settings, ceiling):
        return too_far
    return None


def _further(settings: CacheSettings, ceiling: CacheSettings, steps: int, passes: int) -> str | None:
    """Whether any step may be reused that `ceiling` computes, or at a greater difference; by which setting."""
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
    """What of DBPrune's own settings goes further. A threshold that follows the differences gets to its bound only
    where they lead it, so it may reuse less or more than a fixed one."""
    if settings.cache_type != "DBPrune":
        return None
    if not set(ceiling.non_prune_block_ids) <= set(settings.non_prune_block_ids):
        return "non_prune_block_ids"
    if settings.force_reduce_calibrator_vram != ceiling.force_reduce_calibrator_vram:
        return "force_reduce_calibrator_vram"  # fewer values compared: another difference
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
    """How far each limit lets the cache go, a greater number allowing more reuse, and which setting is to blame.

    A static mask heeds no limit; a refresh that `other` does not have begins every count anew.
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
    """A limit where None and -1 mean that there is none."""
    return math.inf if value is None or value < 0 else value
