"""Speeds: a model's named cache settings from lossless to fast, and what the cache may do to one request.

Pure functions of the configuration, the loaded pipeline's block lists and the request.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from cache_dit_serving.cache_settings import CACHE_TYPES, CALIBRATORS, CacheOptions, CacheSettings, CacheType, Reason
from cache_dit_serving.ceiling import beyond
from cache_dit_serving.config import MeasuredSpeed, Settings, Speed, explain
from cache_dit_serving.errors import InvalidRequest, LoadError

SPEEDS: tuple[Speed, ...] = typing.get_args(Speed)
CUSTOM = "custom"
"""Stands where settings are none of the named speeds."""


OFF = Reason("off", "off")


@dataclass(frozen=True)
class CacheChoice:
    """What the cache may do to one generation."""

    settings: CacheSettings | None
    """None: no cache."""
    speed: str
    """The named speed that these settings are, or `custom`."""
    strict: bool = False
    off: Reason = OFF
    """Why there is no cache."""


WITHOUT_CACHE = CacheChoice(None, "lossless")


@dataclass(frozen=True)
class NamedSpeed:
    """One rung: its settings (None: no cache) and what was measured with exactly those, if anything."""

    settings: CacheSettings | None
    measured: MeasuredSpeed | None = None


@dataclass(frozen=True)
class CacheSupport:
    """What cache-dit can do on the loaded pipeline."""

    block_lists: Mapping[str, int]
    """Blocks of each list that the cache spans: what bounds Fn and Bn."""
    refusals: Mapping[CacheType, str]
    """Why a cache type cannot run here, by type."""

    @property
    def refusal(self) -> str | None:
        """Why there can be no cache at all; None where any type runs."""
        return self.refusals["DBCache"] if len(self.refusals) == len(CACHE_TYPES) else None


class SpeedLadder:
    """The speeds of the loaded model under one configuration, and who may ask for which."""

    def __init__(self, settings: Settings, support: CacheSupport, usual_steps: int) -> None:
        """
        Args:
            usual_steps: the model's usual num_inference_steps, which bounds a derived warm-up.

        Raises:
            LoadError: settings that do not fit the model's blocks, or a default above the ceiling.
        """
        self.support = support
        self.ceiling = settings.speeds.ceiling
        self.measured_on = settings.speeds.measured_on
        base = settings.cache or upstream_settings(usual_steps)
        named: dict[Speed, CacheSettings | None] = {"lossless": None}
        derived = derive(base)
        for speed in SPEEDS[1:]:
            chosen = getattr(settings.speeds, speed).cache or derived.get(speed)
            if chosen is not None:
                named[speed] = chosen
        self.rungs = {
            speed: NamedSpeed(chosen, _figures(speed, chosen, settings))
            for speed, chosen in named.items()
            if chosen is None or chosen.cache_type not in support.refusals
        }
        """Least approximation first; those whose cache type cannot run here are left out."""
        if settings.speeds.default and settings.speeds.default not in named:
            raise LoadError(
                f"speeds.default: {settings.speeds.default} cannot be derived from this mask; give its cache"
            )
        wanted = named[settings.speeds.default] if settings.speeds.default else settings.cache
        self.unfulfilled = support.refusals.get(wanted.cache_type) if wanted else None
        """Why what the configuration wants by default cannot run; None where it does."""
        self.default = None if self.unfulfilled else wanted
        """What a request that asks for nothing gets."""
        within = [self.rungs[speed].settings for speed in self.allowed if speed != "fast"]
        self.base = self.default or next(filter(None, reversed(within)), base)
        """What settings of a request are laid over that names no speed."""
        self._check_configured(settings, usual_steps)

    @property
    def allowed(self) -> list[Speed]:
        """The speeds that a request may name, least approximation first."""
        names = SPEEDS if self.ceiling is None else SPEEDS[: SPEEDS.index(self.ceiling) + 1]
        return [name for name in names if name in self.rungs]

    def name_of(self, settings: CacheSettings | None) -> str:
        """The speed whose settings these are, by what they do; `custom` where they are none's."""
        if settings is None:
            return "lossless"
        return next((name for name, rung in self.rungs.items() if settings.same_effect(rung.settings)), CUSTOM)

    def choose(
        self, speed: Speed | None, options: CacheOptions | None, *, num_inference_steps: int, separate_cfg: bool
    ) -> CacheChoice:
        """What the cache may do to a request with this `speed` and `cache` object.

        Without either: the server's default. The object's fields are laid over the speed's settings; over the server's
        where no speed is named; and over those of `balanced` where the server's own default is no cache.

        Raises:
            InvalidRequest: beyond the ceiling or what this model or number of steps allows; fields that contradict
                each other or would have no effect.
        """
        asks = options is not None and bool(options.model_fields_set)
        options = options or CacheOptions()
        base = self._named(speed) if speed is not None else self.default
        if not options.enabled or speed == "lossless":
            _check_nothing_without_effect(options, speed)
            return WITHOUT_CACHE
        if asks:
            if self.support.refusal is not None:
                raise InvalidRequest(
                    f"there is no cache on this server: {self.support.refusal}", param="cache", code="unsupported_field"
                )
            base = base or self.base
            settings = _overridden(base, options)
            changed = {name for name, value in options.given.items() if value != getattr(base, name)}
            _check_model(settings, self.support)
            _check_request(settings, num_inference_steps, separate_cfg, changed)
            if changed or speed is None:
                self._check_ceiling(settings, num_inference_steps, passes=2 if separate_cfg else 1)
            return CacheChoice(settings, self.name_of(settings), options.strict)
        if base is None:
            off = Reason("unsupported", self.unfulfilled) if self.unfulfilled else OFF
            return CacheChoice(None, "lossless", off=off)
        _check_request(base, num_inference_steps, separate_cfg, changed=set())
        return CacheChoice(base, speed or self.name_of(base))

    def _named(self, speed: Speed) -> CacheSettings | None:
        listed = ", ".join(self.allowed)
        if speed not in self.rungs:
            refusal = " and ".join(self.support.refusals.values())
            raise InvalidRequest(
                f"speed {speed} needs a cache that cannot run here: {refusal}; this server takes: {listed}",
                param="speed",
                code="unsupported_field",
            )
        if speed not in self.allowed:
            raise InvalidRequest(
                f"speed {speed} is above this server's ceiling {self.ceiling}; it takes: {listed}",
                param="speed",
                code="above_ceiling",
            )
        return self.rungs[speed].settings

    def _check_ceiling(self, settings: CacheSettings, steps: int, *, passes: int) -> None:
        """Refuse settings of a request's own that may reuse more than the ceiling's speed, or are filled in by a
        calibrator that no allowed speed uses: some fill in far worse than others."""
        if self.ceiling is None:
            return
        rungs = [self.rungs[speed].settings for speed in self.allowed]
        within = [rung for rung in rungs if rung is not None]
        name = self.name_of(settings)
        ceiling = within[-1] if within and self.allowed[-1] == self.ceiling else None
        if ceiling is None:
            too_far, limit = "enabled", "no cache at all"
        elif any(settings.same_effect(rung) for rung in within):
            return
        elif name != CUSTOM:
            too_far, limit = "enabled", f"these are the settings of {name}"
        elif field := beyond(settings, ceiling, steps, passes=passes):
            too_far, limit = field, f"{field} {getattr(ceiling, field)!r}"
        elif settings.calibration() not in [rung.calibration() for rung in within]:
            too_far = next(filter(settings.__getattribute__, CALIBRATORS), None) or next(
                filter(ceiling.__getattribute__, CALIBRATORS), "enabled"
            )
            limit = "a calibrator as its speeds have it"
        else:
            return
        raise InvalidRequest(
            f"cache.{too_far} goes beyond this server's ceiling, the speed {self.ceiling} ({limit}); "
            f"speeds it takes: {', '.join(self.allowed)}",
            param=f"cache.{too_far}",
            code="above_ceiling",
        )

    def _check_configured(self, settings: Settings, usual_steps: int) -> None:
        """What would refuse every request is refused at load."""
        sections = {f"speeds.{name}.cache": rung.settings for name, rung in self.rungs.items()}
        for section, chosen in {"cache": settings.cache, **sections}.items():
            if chosen is None or chosen.cache_type in self.support.refusals:
                continue
            try:
                _check_model(chosen, self.support)
                chosen.mask(usual_steps)
            except InvalidRequest as error:
                raise LoadError(f"{section}: {error.message}") from error
            except ValueError as error:
                raise LoadError(f"{section}: steps_computation_mask: {error}") from error
        if self.default is not None:
            try:
                self._check_ceiling(self.default, usual_steps, passes=1)
            except InvalidRequest as error:
                raise LoadError(f"what a request gets by default is above speeds.ceiling: {error.message}") from error


def upstream_settings(usual_steps: int) -> CacheSettings:
    """The defaults of cache-dit 1.5.3's command line, the warm-up cut to a third of the steps for few-step models."""
    return CacheSettings(
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        residual_diff_threshold=0.12,
        max_warmup_steps=min(8, max(1, usual_steps // 3)),
        max_continuous_cached_steps=3,
    )


def derive(balanced: CacheSettings) -> dict[Speed, CacheSettings]:
    """Speeds around given settings, for a model that has none measured.

    `high` halves the threshold and reuses at most twice in a row. `fast` doubles the threshold (below 1, where
    cache-dit would always reuse), halves the warm-up, doubles the limit in a row and, where no calibrator is on,
    extrapolates with TaylorSeer. A mask that reuses without asking has no threshold: there `high` asks, and `fast` is
    the next faster policy, if the mask is one.
    """
    policies = ("slow", "medium", "fast", "ultra")
    in_a_row, threshold = balanced.max_continuous_cached_steps, balanced.residual_diff_threshold
    if balanced.reuses_without_asking:
        speeds: dict[Speed, CacheSettings] = {
            "high": balanced.overridden({"steps_computation_policy": "dynamic"}),
            "balanced": balanced,
        }
        mask = balanced.steps_computation_mask
        if isinstance(mask, str) and mask != policies[-1]:
            faster = policies[policies.index(mask) + 1]
            speeds["fast"] = balanced.overridden({"steps_computation_mask": faster})
        return speeds
    high = {
        "residual_diff_threshold": threshold / 2,
        "max_continuous_cached_steps": 2 if in_a_row < 0 else min(2, in_a_row),
    }
    most = balanced.max_dynamic_prune_threshold
    fast = {
        "residual_diff_threshold": max(threshold, min(0.95, threshold * 2)),
        "max_warmup_steps": balanced.max_warmup_steps // 2,
        "max_continuous_cached_steps": in_a_row if in_a_row < 0 else in_a_row * 2,
        **({} if most is None else {"max_dynamic_prune_threshold": most * 2}),
    }
    if balanced.cache_type == "DBCache" and not any(getattr(balanced, switch) for switch in CALIBRATORS):
        fast["enable_taylorseer"] = True
    return {"high": balanced.overridden(high), "balanced": balanced, "fast": balanced.overridden(fast)}


def _figures(speed: Speed, chosen: CacheSettings | None, settings: Settings) -> MeasuredSpeed | None:
    """What was measured with exactly these settings."""
    measured = None if chosen is None else getattr(settings.speeds, speed).measured
    return measured if chosen and measured and measured.settings_hash == chosen.digest() else None


def _check_nothing_without_effect(options: CacheOptions, speed: Speed | None) -> None:
    """Without a cache, its settings and `strict` would change nothing."""
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


def _overridden(base: CacheSettings, options: CacheOptions) -> CacheSettings:
    try:
        effective = base.overridden(options.given)
    except ValidationError as error:
        field = error.errors()[0].get("ctx", {}).get("field")
        raise InvalidRequest(f"cache: {explain(error)}", param=f"cache.{field}" if field else "cache") from error
    in_force = effective.effective().keys() | {"enable_separate_cfg"}
    for name, value in options.given.items():
        if name not in in_force and not (value is None or (name in CALIBRATORS and value is False)):
            raise InvalidRequest(
                f"cache.{name} has no effect beside the other settings (mask, calibrator, cache type); leave it out",
                param=f"cache.{name}",
            )
    return effective


def _check_model(settings: CacheSettings, support: CacheSupport) -> None:
    """Refuse what the block lists cannot hold: cache-dit fails on some of it and computes blocks twice on other."""
    if (refusal := support.refusals.get(settings.cache_type)) is not None:
        raise InvalidRequest(refusal, param="cache.cache_type", code="unsupported_field")
    first, last = settings.Fn_compute_blocks, settings.Bn_compute_blocks
    for name, count in support.block_lists.items():
        if first + last > count:
            raise InvalidRequest(
                f"Fn_compute_blocks {first} + Bn_compute_blocks {last} is more than the {count} blocks of {name}",
                param="cache.Fn_compute_blocks" if first > count else "cache.Bn_compute_blocks",
            )
    longest = max(support.block_lists.values())
    beyond_all = [index for index in settings.non_prune_block_ids if index >= longest]
    if beyond_all:
        raise InvalidRequest(
            f"non_prune_block_ids {beyond_all} are beyond the {longest} blocks", param="cache.non_prune_block_ids"
        )
    kept = set(range(first)) | set(settings.non_prune_block_ids)
    if all(len(kept | set(range(count - last, count))) >= count for count in support.block_lists.values()):
        raise InvalidRequest(
            "the settings compute every block, which leaves none to reuse; lower Fn_compute_blocks or Bn_compute_blocks"
            + (", or name fewer non_prune_block_ids" if settings.non_prune_block_ids else ""),
            param="cache.non_prune_block_ids" if settings.non_prune_block_ids else "cache.Fn_compute_blocks",
        )


def _check_request(settings: CacheSettings, steps: int, separate_cfg: bool, changed: set[str]) -> None:
    """Refuse settings that do not go with this request's steps or passes. `changed`: those that are its own."""
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
    hint, passes = settings.force_refresh_step_hint, steps * (2 if separate_cfg else 1)
    if hint is None:
        return
    asked = "force_refresh_step_hint" in changed
    if separate_cfg and hint % 2:
        raise InvalidRequest(
            f"force_refresh_step_hint {hint} would part the two forward passes of a step; "
            + ("it counts passes: make it even" if asked else "it is this server's: ask for speed lossless"),
            param="cache.force_refresh_step_hint" if asked else "speed",
        )
    if asked and hint >= passes:
        raise InvalidRequest(
            f"cache.force_refresh_step_hint {hint} has no effect on a request of {passes} forward passes",
            param="cache.force_refresh_step_hint",
        )
