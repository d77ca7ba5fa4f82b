"""Speeds: a model's named cache settings from lossless to fast, and what the cache may do to one request.

Pure functions of the configuration, the loaded pipeline's block lists and the request.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from cache_dit_serving.cache_settings import CALIBRATORS, CacheOptions, CacheSettings, Reason
from cache_dit_serving.config import MeasuredSpeed, Settings, Speed, explain
from cache_dit_serving.errors import InvalidRequest, LoadError

SPEEDS: tuple[Speed, ...] = typing.get_args(Speed)
CUSTOM = "custom"
"""Stands where settings are none of the named speeds."""


@dataclass(frozen=True)
class CacheChoice:
    """What the cache may do to one generation."""

    settings: CacheSettings | None
    """None: no cache."""
    speed: str
    """The named speed that these settings are, or `custom`."""
    strict: bool = False
    off: Reason = ("off", "off")
    """Why there is no cache."""


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
    refusals: Mapping[str, str]
    """Why a cache type cannot run here, by type."""

    @property
    def refusal(self) -> str | None:
        """Why there can be no cache at all."""
        return self.refusals.get("DBCache")


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
        self.rungs: dict[Speed, NamedSpeed] = {"lossless": NamedSpeed(None)}
        """Least approximation first; only `lossless` where the cache cannot run."""
        self.default: CacheSettings | None = None
        """What a request that asks for nothing gets."""
        default = settings.speeds.default
        self.wants_cache = default != "lossless" if default else settings.cache is not None
        if support.refusal is not None:
            return
        derived = derive(settings.cache or upstream_settings(usual_steps))
        for name in SPEEDS[1:]:
            section = getattr(settings.speeds, name)
            chosen = section.cache or derived[name]
            holds = section.measured is not None and section.measured.settings_hash == chosen.digest()
            self.rungs[name] = NamedSpeed(chosen, section.measured if holds else None)
        self.default = self.rungs[default].settings if default else settings.cache
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
        if speed is not None:
            base = self._named(speed)
        elif options is None and self.support.refusal is not None and self.wants_cache:
            return CacheChoice(None, "lossless", off=("unsupported", self.support.refusal))
        else:
            base = self.default
        options = options or CacheOptions()
        if not options.enabled or speed == "lossless":
            _check_nothing_without_effect(options, speed)
            return CacheChoice(None, "lossless")
        if options.model_fields_set:
            if self.support.refusal is not None:
                raise InvalidRequest(
                    f"there is no cache on this server: {self.support.refusal}", param="cache", code="unsupported_field"
                )
            base = _overridden(base or self.rungs["balanced"].settings, options)
        if base is None:
            return CacheChoice(None, "lossless")
        _check_model(base, self.support)
        _check_request(base, num_inference_steps, separate_cfg, given=set(options.given))
        self._check_ceiling(base, num_inference_steps)
        return CacheChoice(base, self.name_of(base), options.strict)

    def _named(self, speed: Speed) -> CacheSettings | None:
        listed = ", ".join(self.allowed)
        if speed not in self.rungs:
            raise InvalidRequest(
                f"speed {speed} needs the cache, but {self.support.refusal}; this server takes: {listed}",
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

    def _check_ceiling(self, settings: CacheSettings, steps: int) -> None:
        if self.ceiling is None:
            return
        ceiling = self.rungs[self.ceiling].settings
        beyond = "enabled" if ceiling is None else settings.beyond(ceiling, steps)
        if beyond is not None:
            limit = "no cache at all" if ceiling is None else f"{beyond} {getattr(ceiling, beyond)!r}"
            raise InvalidRequest(
                f"cache.{beyond} goes beyond this server's ceiling, the speed {self.ceiling} ({limit}); "
                f"speeds it takes: {', '.join(self.allowed)}",
                param=f"cache.{beyond}",
                code="above_ceiling",
            )

    def _check_configured(self, settings: Settings, usual_steps: int) -> None:
        """What would refuse every request is refused at load."""
        sections = {f"speeds.{name}.cache": rung.settings for name, rung in self.rungs.items()}
        for section, chosen in {"cache": settings.cache, **sections}.items():
            if chosen is None:
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
                self._check_ceiling(self.default, usual_steps)
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


def derive(balanced: CacheSettings) -> dict[str, CacheSettings]:
    """Speeds around given settings, for a model that has none measured.

    `high` halves the threshold and reuses at most twice in a row. `fast` doubles the threshold (below 1, where
    cache-dit would always reuse), halves the warm-up, doubles the limit in a row and extrapolates with TaylorSeer.
    """
    in_a_row, threshold = balanced.max_continuous_cached_steps, balanced.residual_diff_threshold
    high = {
        "residual_diff_threshold": threshold / 2,
        "max_continuous_cached_steps": 2 if in_a_row < 0 else min(2, in_a_row),
    }
    fast = {
        "residual_diff_threshold": max(threshold, min(0.95, threshold * 2)),
        "max_warmup_steps": balanced.max_warmup_steps // 2,
        "max_continuous_cached_steps": in_a_row if in_a_row < 0 else in_a_row * 2,
    }
    if balanced.cache_type == "DBCache" and not any(getattr(balanced, switch) for switch in CALIBRATORS):
        fast["enable_taylorseer"] = True
    return {"high": balanced.overridden(high), "balanced": balanced, "fast": balanced.overridden(fast)}


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


def _overridden(base: CacheSettings | None, options: CacheOptions) -> CacheSettings:
    assert base is not None
    try:
        effective = base.overridden(options.given)
    except ValidationError as error:
        message = explain(error)
        named = re.match(r"\w+", message)
        field = f".{named[0]}" if named and named[0] in CacheOptions.model_fields else ""
        raise InvalidRequest(f"cache: {message}", param=f"cache{field}") from error
    in_force = effective.effective().keys() | {"enable_separate_cfg"}
    for name, value in options.given.items():
        if name not in in_force and not (value is None or (name in CALIBRATORS and value is False)):
            raise InvalidRequest(
                f"cache.{name} has no effect here: what it belongs to (a mask, a calibrator, DBPrune ...) is not on",
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
    beyond = [index for index in settings.non_prune_block_ids if index >= longest]
    if beyond:
        raise InvalidRequest(
            f"non_prune_block_ids {beyond} are beyond the {longest} blocks", param="cache.non_prune_block_ids"
        )


def _check_request(settings: CacheSettings, steps: int, separate_cfg: bool, given: set[str]) -> None:
    """Refuse settings that do not go with this request's steps or passes. `given`: those that it names itself."""
    try:
        settings.mask(steps)
    except ValueError as error:
        own = "steps_computation_mask" in given
        raise InvalidRequest(
            f"{'cache.steps_computation_mask' if own else 'the step mask of this server'} does not fit: {error}",
            param="cache.steps_computation_mask" if own else "num_inference_steps",
        ) from error
    if "enable_separate_cfg" in given and settings.enable_separate_cfg not in (None, separate_cfg):
        raise InvalidRequest(
            f"cache.enable_separate_cfg does not fit: by its guidance this request makes "
            f"{'two forward passes' if separate_cfg else 'one forward pass'} a step; leave it out",
            param="cache.enable_separate_cfg",
        )
    for name in ("cfg_compute_first", "cfg_diff_compute_separate"):
        if name in given and not separate_cfg and getattr(settings, name) != CacheSettings.model_fields[name].default:
            raise InvalidRequest(
                f"cache.{name} has no effect on a request that makes one forward pass a step; leave it out",
                param=f"cache.{name}",
            )
    hint = settings.force_refresh_step_hint
    if hint is not None and separate_cfg and hint % 2:
        raise InvalidRequest(
            f"force_refresh_step_hint {hint} would part the two forward passes of a step; "
            "it counts passes: make it even",
            param="cache.force_refresh_step_hint",
        )
