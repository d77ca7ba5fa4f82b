"""Speeds: a model's named cache settings from lossless to fast, and what the cache may do to one request.

Pure functions of the configuration, the loaded pipeline's block lists and the request.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass

from cache_dit_serving.caching.ceiling import exceeds
from cache_dit_serving.caching.checks import (
    CacheSupport,
    check_model,
    check_nothing_without_effect,
    check_request,
    overridden,
)
from cache_dit_serving.caching.derived import derive, upstream_settings
from cache_dit_serving.caching.settings import CacheOptions, CacheSettings, Reason
from cache_dit_serving.caching.speed_settings import MeasuredSpeed, Speed, SpeedsSettings
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
    no_cache_reason: Reason = OFF
    """Why there is no cache, where `settings` is None."""
    inherited: frozenset[str] = frozenset()
    """Settings that the configuration names and the request's own `cache` object leaves as they are."""


WITHOUT_CACHE = CacheChoice(None, "lossless")


@dataclass(frozen=True)
class NamedSpeed:
    """One rung: its settings (None: no cache) and what was measured with exactly those, if anything."""

    settings: CacheSettings | None
    measured: MeasuredSpeed | None = None


class SpeedLadder:
    """The speeds of the loaded model under one configuration, and which of them requests may name."""

    def __init__(
        self, cache: CacheSettings | None, speeds: SpeedsSettings, support: CacheSupport, usual_steps: int
    ) -> None:
        """
        Args:
            cache: the settings tree's section of that name.
            speeds: likewise.
            support: what cache-dit can do on the loaded pipeline.
            usual_steps: the model's usual num_inference_steps, which bounds a derived warm-up.

        Raises:
            LoadError: settings that do not fit the model's blocks, or a default above the ceiling.
        """
        self.support = support
        self.ceiling = speeds.ceiling
        self.measured_on = speeds.measured_on
        base = cache or upstream_settings(usual_steps)
        named: dict[Speed, CacheSettings | None] = {"lossless": None}
        derived = derive(base)
        for speed in SPEEDS[1:]:
            chosen = getattr(speeds, speed).cache or derived.get(speed)
            if chosen is not None:
                named[speed] = chosen
        self.rungs = {
            speed: NamedSpeed(chosen, _figures(speed, chosen, speeds))
            for speed, chosen in named.items()
            if chosen is None or chosen.cache_type not in support.refusals
        }
        """Least approximation first; those whose cache type cannot run here are left out."""
        if speeds.default and speeds.default not in named:
            raise LoadError(f"speeds.default: {speeds.default} cannot be derived from this mask; give its cache")
        wanted = named[speeds.default] if speeds.default else cache
        self.unfulfilled = support.refusals.get(wanted.cache_type) if wanted else None
        """Why what the configuration wants by default cannot run; None where it does."""
        self.default = None if self.unfulfilled else wanted
        """What a request that asks for nothing gets."""
        within = [self.rungs[speed].settings for speed in self.allowed if speed != "fast"]
        self.base = self.default or next(filter(None, reversed(within)), base)
        """Base settings for a request that sends `cache` but no `speed`."""
        self._check_configured(cache, usual_steps)

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
        self, speed: Speed | None, options: CacheOptions | None, *, num_inference_steps: int, passes: int
    ) -> CacheChoice:
        """What the cache may do to a request with this `speed` and `cache` object.

        Without either: the server's default. The object's fields are laid over the speed's settings; over the server's
        where no speed is named; and where the server's own default is no cache over those of `balanced`, or of the
        ceiling below it.

        Raises:
            InvalidRequest: beyond the ceiling or what this model or number of steps allows; fields that contradict
                each other or would have no effect.
        """
        asks = options is not None and bool(options.model_fields_set)
        options = options or CacheOptions()
        base = self._named(speed) if speed is not None else self.default
        if not options.enabled or speed == "lossless":
            check_nothing_without_effect(options, speed)
            return WITHOUT_CACHE
        if asks:
            if self.support.refusal is not None:
                raise InvalidRequest(
                    f"there is no cache on this server: {self.support.refusal}", param="cache", code="unsupported_field"
                )
            base = base or self.base
            settings = overridden(base, options)
            changed = {name for name, value in options.given.items() if value != getattr(base, name)}
            check_model(settings, self.support)
            check_request(settings, num_inference_steps, passes, changed)
            if changed or (speed is None and self.default is None):  # the rest is the operator's word
                self._check_ceiling(settings, num_inference_steps, passes=passes)
            name = speed if speed is not None and not changed else self.name_of(settings)
            inherited = base.model_fields_set - options.given.keys()
            return CacheChoice(settings, name, options.strict, inherited=frozenset(inherited))
        if base is None:
            reason = Reason("unsupported", self.unfulfilled) if self.unfulfilled else OFF
            return CacheChoice(None, "lossless", no_cache_reason=reason)
        check_request(base, num_inference_steps, passes, changed=set())
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
        elif field := exceeds(settings, ceiling, steps, passes=passes):
            too_far, limit = field, f"{field} {getattr(ceiling, field)!r}"
        elif settings.calibration() not in [rung.calibration() for rung in within]:
            too_far = settings.calibrator or ceiling.calibrator or "enabled"
            limit = "a calibrator as its speeds have it"
        else:
            return
        raise InvalidRequest(
            f"cache.{too_far} goes beyond this server's ceiling, the speed {self.ceiling} ({limit}); "
            f"speeds it takes: {', '.join(self.allowed)}",
            param=f"cache.{too_far}",
            code="above_ceiling",
        )

    def _check_configured(self, cache: CacheSettings | None, usual_steps: int) -> None:
        """What would refuse every request is refused at load."""
        sections = {f"speeds.{name}.cache": rung.settings for name, rung in self.rungs.items()}
        for section, chosen in {"cache": cache, **sections}.items():
            if chosen is None or chosen.cache_type in self.support.refusals:
                continue
            try:
                check_model(chosen, self.support)
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


def _figures(speed: Speed, chosen: CacheSettings | None, speeds: SpeedsSettings) -> MeasuredSpeed | None:
    """What was measured with exactly these settings."""
    measured = None if chosen is None else getattr(speeds, speed).measured
    return measured if chosen and measured and measured.settings_hash == chosen.digest() else None
