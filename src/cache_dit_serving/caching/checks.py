"""Checks of a request's cache settings against the loaded model, the number of steps and each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from cache_dit_serving.caching.parts import PARTS
from cache_dit_serving.caching.settings import CACHE_TYPES, CALIBRATORS, CacheOptions, CacheSettings, CacheType
from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.findings import findings_of


@dataclass(frozen=True)
class CacheSupport:
    """Capabilities of cache-dit on the loaded pipeline."""

    block_lists: Mapping[str, int]
    """Number of blocks in each cached list, by `transformer.block_list`: the bound on Fn plus Bn."""
    refusals: Mapping[CacheType, str]
    """Reason that a cache type cannot run here, by type; types that can run are absent."""

    def names(self, field: str) -> list[str]:
        """Return the transformers or block lists that `per_transformer` or `per_block_list` may name, sorted."""
        return sorted({label.split(".", 1)[PARTS.index(field)] for label in self.block_lists})

    @property
    def refusal(self) -> str | None:
        """Reason that no cache type can run here; None if at least one can."""
        return self.refusals["DBCache"] if len(self.refusals) == len(CACHE_TYPES) else None


def check_nothing_without_effect(options: CacheOptions, speed: Speed | None) -> None:
    """Refuse cache settings and `strict` in a request that runs without a cache.

    Raises:
        InvalidRequest: a field has no effect, or `cache.enabled` contradicts `speed`.
    """
    if not options.enabled and speed not in (None, "lossless"):
        raise InvalidRequest(f"cache.enabled false contradicts speed {speed}; send one of them", param="cache.enabled")
    idle = [*options.given, *(["strict"] if options.strict else [])]
    if options.enabled and "enabled" in options.model_fields_set:
        idle.append("enabled")
    if idle:
        cause = "speed lossless" if options.enabled else "cache.enabled false"
        raise InvalidRequest(
            f"cache.{idle[0]} has no effect with {cause}, which runs no cache; leave one of them out",
            param=f"cache.{idle[0]}",
        )


def overridden(base: CacheSettings, options: CacheOptions) -> CacheSettings:
    """Return `base` with the settings of a request's `cache` object.

    Raises:
        InvalidRequest: the settings contradict each other, or one has no effect beside the others.
    """
    try:
        effective = base.overridden(options.given)
    except ValidationError as error:
        field = error.errors()[0].get("ctx", {}).get("field")
        sentences = "; ".join(finding.message for finding in findings_of(error))
        raise InvalidRequest(f"cache: {sentences}", param=f"cache.{field}" if field else "cache") from error
    in_force = effective.effective().keys() | {"enable_separate_cfg"}
    for name, value in options.given.items():
        without_it = value is None or (name in CALIBRATORS and value is False) or (name in PARTS and not value)
        if name not in in_force and not without_it:
            raise InvalidRequest(
                f"cache.{name} has no effect beside the other settings (mask, calibrator, cache type); leave it out",
                param=f"cache.{name}",
            )
    return effective


def check_model(settings: CacheSettings, support: CacheSupport) -> None:
    """Refuse settings that the block lists cannot hold. cache-dit fails on some of them and computes blocks twice on
    others.

    Raises:
        InvalidRequest: the cache type cannot run, a part or block does not exist, or no block is left to reuse.
    """
    if (refusal := support.refusals.get(settings.cache_type)) is not None:
        raise InvalidRequest(refusal, param="cache.cache_type", code="unsupported_field")
    _check_names(settings, support)
    ids = set(settings.non_prune_block_ids)
    free = 0
    for name, count in support.block_lists.items():
        own = settings.of(*name.split(".", 1))
        first, last = own.Fn_compute_blocks, own.Bn_compute_blocks
        if first + last > count:
            raise InvalidRequest(
                f"Fn_compute_blocks {first} + Bn_compute_blocks {last} is more than the {count} blocks of {name}",
                param="cache.Fn_compute_blocks" if first > count else "cache.Bn_compute_blocks",
            )
        free += count - len(ids.intersection(range(count)).union(range(first), range(count - last, count)))
    longest = max(support.block_lists.values())
    beyond_all = [index for index in settings.non_prune_block_ids if index >= longest]
    if beyond_all:
        raise InvalidRequest(
            f"non_prune_block_ids {beyond_all} are beyond the {longest} blocks", param="cache.non_prune_block_ids"
        )
    if not free:
        raise InvalidRequest(
            "the settings compute every block, which leaves none to reuse; lower Fn_compute_blocks or Bn_compute_blocks"
            + (", or name fewer non_prune_block_ids" if ids else ""),
            param="cache.non_prune_block_ids" if ids else "cache.Fn_compute_blocks",
        )


def _check_names(settings: CacheSettings, support: CacheSupport) -> None:
    """Refuse settings of a transformer or block list that the model does not have."""
    for field in PARTS:
        known = support.names(field)
        for part in getattr(settings, field):
            if part not in known:
                raise InvalidRequest(
                    f"{field} names {part}, which the cache does not span here; there is: {', '.join(known)}",
                    param=f"cache.{field}",
                )


def check_request(settings: CacheSettings, steps: int, passes: int, changed: set[str]) -> None:
    """Refuse settings that do not fit this request's steps or forward passes.

    Args:
        steps: num_inference_steps.
        passes: forward passes a step, 1 or 2.
        changed: names of the settings that the request itself changes; errors name them instead of the server's.

    Raises:
        InvalidRequest: the step mask, the passes or the forced refresh does not fit.
    """
    separate_cfg = passes == 2
    own = "steps_computation_mask" in changed
    try:
        settings.mask(steps)
    except ValueError as error:
        raise InvalidRequest(
            f"{'cache.steps_computation_mask' if own else 'the step mask of this server'} does not fit: {error}",
            param="cache.steps_computation_mask" if own else "num_inference_steps",
        ) from error
    if "enable_separate_cfg" in changed and settings.enable_separate_cfg not in (None, separate_cfg):
        raise InvalidRequest(
            f"cache.enable_separate_cfg does not fit: by its guidance this request makes "
            f"{'two forward passes' if separate_cfg else 'one forward pass'} a step; leave it out",
            param="cache.enable_separate_cfg",
        )
    for name in ("cfg_compute_first", "cfg_diff_compute_separate"):
        if name in changed and not separate_cfg:
            raise InvalidRequest(
                f"cache.{name} has no effect on a request that makes one forward pass a step; leave it out",
                param=f"cache.{name}",
            )
    hint, forwards = settings.force_refresh_step_hint, steps * passes
    if hint is None:
        return
    asked = "force_refresh_step_hint" in changed
    if separate_cfg and hint % 2:
        raise InvalidRequest(
            f"force_refresh_step_hint {hint} would part the two forward passes of a step; "
            + ("it counts passes: make it even" if asked else "it is this server's: ask for speed lossless"),
            param="cache.force_refresh_step_hint" if asked else "speed",
        )
    if asked and hint >= forwards:
        raise InvalidRequest(
            f"cache.force_refresh_step_hint {hint} has no effect on a request of {forwards} forward passes",
            param="cache.force_refresh_step_hint",
        )
