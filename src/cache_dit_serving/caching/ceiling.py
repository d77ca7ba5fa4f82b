"""Which cache settings may approximate more than others: what a server's ceiling is held to."""

from __future__ import annotations

import math

from cache_dit_serving.caching.settings import CacheSettings


def beyond(settings: CacheSettings, ceiling: CacheSettings, steps: int, *, passes: int) -> str | None:
    """The first setting by which `settings` may reuse more than `ceiling` does in so many steps; None where none.

    Calibrators are not compared: they change what a reused step is filled with (see `SpeedLadder`).
    """
    if settings.cache_type != ceiling.cache_type:
        return "cache_type"  # their thresholds mean different things
    most = {name: limit for name, limit, _ in _limits(ceiling)}
    for name, limit, cause in _limits(settings):
        if limit > most[name]:
            return cause
    if too_far := _further(settings, ceiling, steps, passes):
        return too_far
    both_follow = settings.enable_dynamic_prune_threshold and ceiling.enable_dynamic_prune_threshold
    if both_follow and settings.dynamic_prune_threshold_relax_ratio > ceiling.dynamic_prune_threshold_relax_ratio:
        return "dynamic_prune_threshold_relax_ratio"
    if settings.force_reduce_calibrator_vram != ceiling.force_reduce_calibrator_vram:
        return "force_reduce_calibrator_vram"  # fewer values compared: another difference
    if not set(ceiling.non_prune_block_ids) <= set(settings.non_prune_block_ids):
        return "non_prune_block_ids"
    return None


def _further(settings: CacheSettings, ceiling: CacheSettings, steps: int, passes: int) -> str | None:
    """Whether any step may be reused that `ceiling` computes, or at a greater difference; by which setting."""
    try:
        allowed = ceiling.reach(steps, passes=passes)
    except ValueError:  # the ceiling's own mask is for other numbers of steps
        return "steps_computation_mask"
    if all(own <= most for own, most in zip(settings.reach(steps, passes=passes), allowed, strict=True)):
        return None
    structural = ("steps_computation_policy", "steps_computation_mask", "force_refresh_step_hint")
    for name in (*structural, "force_refresh_step_policy", "max_warmup_steps", "warmup_interval"):
        if getattr(settings, name) != getattr(ceiling, name):
            return name
    return "residual_diff_threshold"


def _limits(settings: CacheSettings) -> list[tuple[str, float, str]]:
    """How far each setting lets the cache go, a greater number always meaning more reuse, and which setting is to
    blame."""
    always, refreshed = settings.reuses_without_asking, settings.force_refresh_step_hint is not None
    # A static mask heeds no limit; a refresh begins every count anew.
    lifted_by = "steps_computation_policy" if always else "force_refresh_step_hint" if refreshed else None
    accumulated, cached = "max_accumulated_residual_diff_threshold", "max_cached_steps"
    in_a_row = "max_continuous_cached_steps"
    return [
        (accumulated, math.inf if lifted_by else _most(getattr(settings, accumulated)), lifted_by or accumulated),
        (cached, math.inf if lifted_by else _most(settings.max_cached_steps), lifted_by or cached),
        (
            in_a_row,
            math.inf if always else _most(settings.max_continuous_cached_steps),
            "steps_computation_policy" if always else in_a_row,
        ),
        ("Fn_compute_blocks", -settings.Fn_compute_blocks, "Fn_compute_blocks"),
        ("Bn_compute_blocks", -settings.Bn_compute_blocks, "Bn_compute_blocks"),
        ("cfg_diff_compute_separate", 0 if settings.cfg_diff_compute_separate else 1, "cfg_diff_compute_separate"),
    ]


def _most(value: float | None) -> float:
    """A limit where None and -1 mean that there is none."""
    return math.inf if value is None or value < 0 else value
