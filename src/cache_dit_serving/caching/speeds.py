"""Speeds: a model's named cache settings from lossless to fast, and the choice among them for one request.

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
from cache_dit_serving.caching.speed_settings import MeasuredSpeed, Speed, SpeedSettings, SpeedsSettings
from cache_dit_serving.errors import InvalidRequest, LoadError

SPEEDS: tuple[Speed, ...] = typing.get_args(Speed)
CUSTOM = "custom"
"""Name reported for settings and steps that match no named speed."""


OFF = Reason("off", "off")


@dataclass(frozen=True)
class CacheChoice:
    """Cache settings chosen for one generation."""

    settings: CacheSettings | None
    """None: no cache."""
    speed: str
    """Speed that the request names or gets by default, else the one with these settings and steps, or `custom`."""
    strict: bool = False
    no_cache_reason: Reason = OFF
    """Reason for running without a cache; has no meaning unless `settings` is None."""
    inherited: frozenset[str] = frozenset()
    """Settings that the configuration names and the request's own `cache` object does not override."""


WITHOUT_CACHE = CacheChoice(None, "lossless")


@dataclass(frozen=True)
class NamedSpeed:
    """One rung of the ladder: settings (None: no cache) and steps, and the figures measured with exactly these.

    Two rungs may have the same settings and differ by their steps alone.
    """

    settings: CacheSettings | None
    steps: int | None = None
    """Steps of a request that names none; None: the model's default."""
    measured: MeasuredSpeed | None = None


class SpeedLadder:
    """Speeds of the loaded model under one configuration, with the ones that requests may name."""

    def __init__(
        self, cache: CacheSettings | None, speeds: SpeedsSettings, support: CacheSupport, usual_steps: int
    ) -> None:
        """
        Args:
            cache: section `cache` of the settings tree.
            speeds: section `speeds` of the settings tree.
            support: cache-dit's capabilities on the loaded pipeline.
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
            speed: NamedSpeed(chosen, _steps(speed, speeds), _figures(speed, chosen, speeds, usual_steps))
            for speed, chosen in named.items()
            if chosen is None or chosen.cache_type not in support.refusals
        }
        """Available speeds, least approximation first; a speed whose cache type cannot run here is left out."""
        if speeds.default and speeds.default not in named:
            raise LoadError(f"speeds.default: {speeds.default} cannot be derived from this mask; give its cache")
        wanted = named[speeds.default] if speeds.default else cache
        self.unfulfilled = support.refusals.get(wanted.cache_type) if wanted else None
        """Reason that the configuration's default cache settings cannot run here; None if they can."""
        self.default = None if self.unfulfilled else wanted
        """Settings of a request with neither `speed` nor `cache`; None: no cache."""
        self.default_speed = self._default_speed(speeds)
        """Speed of such a request, or `custom`."""
        within = [self.rungs[speed].settings for speed in self.allowed if speed != "fast"]
        self.base = self.default or next(filter(None, reversed(within)), base)
        """Base settings for a request that sends `cache` but no `speed`."""
        self._check_configured(cache, usual_steps)

    @property
    def allowed(self) -> list[Speed]:
        """Speeds that a request may name, least approximation first."""
        names = SPEEDS if self.ceiling is None else SPEEDS[: SPEEDS.index(self.ceiling) + 1]
        return [name for name in names if name in self.rungs]

    def name_of(self, settings: CacheSettings | None, steps: int) -> str:
        """Return the name of the speed with these settings and steps; `custom` if there is none.

        A speed without steps of its own has any number of them; one with exactly these comes before it.
        """
        if settings is None:
            return "lossless"
        alike = self._alike(settings)
        exact = [name for name in alike if self.rungs[name].steps == steps]
        return next(iter((*exact, *(name for name in alike if self.rungs[name].steps is None))), CUSTOM)

    def _alike(self, settings: CacheSettings) -> list[Speed]:
        """Return the speeds with the effect of `settings`, whatever their steps."""
        return [name for name, rung in self.rungs.items() if settings.same_effect(rung.settings)]

    def _default_speed(self, speeds: SpeedsSettings) -> str:
        """Return the name of the default settings. Those of the section `cache` are `balanced`, if that may be it."""
        if self.default is None:
            return "lossless"
        if speeds.default is not None:
            return speeds.default
        alike = [name for name in self._alike(self.default) if name in self.allowed]
        return "balanced" if "balanced" in alike else next(iter(alike), CUSTOM)

    def steps(self, speed: Speed | None, options: CacheOptions | None) -> int | None:
        """Return the number of steps for a request that names none, by its speed; None: the model's default.

        A request with neither `speed` nor `cache` gets that of the default speed.
        """
        if speed is None:
            asks = options is not None and bool(options.model_fields_set)
            name = "" if asks or self.default is None else self.default_speed
        else:
            name = speed
        return next((rung.steps for each, rung in self.rungs.items() if each == name), None)

    def choose(
        self, speed: Speed | None, options: CacheOptions | None, *, num_inference_steps: int, passes: int
    ) -> CacheChoice:
        """Return the cache settings for a request with this `speed` and `cache` object.

        Without either, they are the server's default. The fields of `cache` override the named speed's settings.
        Without a speed they override the server's default, and if that is no cache, the settings of `balanced` or of a
        ceiling below it.

        Raises:
            InvalidRequest: the settings exceed the ceiling, do not fit this model or number of steps, contradict each
                other or have no effect.
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
            if changed or (speed is None and self.default is None):  # other settings are the operator's own
                self._check_ceiling(settings, num_inference_steps, passes=passes)
            named = None if changed else speed
            name = named or self.name_of(settings, num_inference_steps)
            inherited = base.model_fields_set - options.given.keys()
            return CacheChoice(settings, name, options.strict, inherited=frozenset(inherited))
        if base is None:
            reason = Reason("unsupported", self.unfulfilled) if self.unfulfilled else OFF
            return CacheChoice(None, "lossless", no_cache_reason=reason)
        check_request(base, num_inference_steps, passes, changed=set())
        return CacheChoice(base, speed or self.default_speed)

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
        """Refuse settings that may reuse more than the ceiling's speed, or use a calibrator of no allowed speed.

        Calibrators differ widely in how close their extrapolated values come.

        Raises:
            InvalidRequest: the settings exceed the ceiling; names the first such setting.
        """
        if self.ceiling is None:
            return
        rungs = [self.rungs[speed].settings for speed in self.allowed]
        within = [rung for rung in rungs if rung is not None]
        alike = self._alike(settings)
        ceiling = within[-1] if within and self.allowed[-1] == self.ceiling else None
        if ceiling is None:
            too_far, limit = "enabled", "no cache at all"
        elif any(name in self.allowed for name in alike):
            return
        elif alike:
            too_far, limit = "enabled", f"these are the settings of {alike[0]}"
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
        """Refuse at load the configured settings that would fail every request.

        Raises:
            LoadError: settings do not fit the model or its usual steps, or the default is above the ceiling.
        """
        rungs = {f"speeds.{name}.cache": (rung.settings, rung.steps) for name, rung in self.rungs.items()}
        for section, (chosen, steps) in {"cache": (cache, None), **rungs}.items():
            if chosen is None or chosen.cache_type in self.support.refusals:
                continue
            try:
                check_model(chosen, self.support)
                chosen.mask(steps or usual_steps)
            except InvalidRequest as error:
                raise LoadError(f"{section}: {error.message}") from error
            except ValueError as error:
                raise LoadError(f"{section}: steps_computation_mask: {error}") from error
        if self.default is not None:
            try:
                self._check_ceiling(self.default, usual_steps, passes=1)
            except InvalidRequest as error:
                raise LoadError(f"what a request gets by default is above speeds.ceiling: {error.message}") from error


def _steps(speed: Speed, speeds: SpeedsSettings) -> int | None:
    return None if speed == "lossless" else getattr(speeds, speed).num_inference_steps


def _figures(
    speed: Speed, chosen: CacheSettings | None, speeds: SpeedsSettings, usual_steps: int
) -> MeasuredSpeed | None:
    """Return the figures measured with exactly these settings and steps; None if there are none."""
    if chosen is None:
        return None
    section: SpeedSettings = getattr(speeds, speed)
    measured, steps = section.measured, section.num_inference_steps or usual_steps
    if measured is None or (measured.settings_hash, measured.num_inference_steps) != (chosen.digest(), steps):
        return None
    return measured
