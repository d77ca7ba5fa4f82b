"""Floors: how like its reference an output of each speed must be, and the points that are chosen to hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.caching.speeds import SPEEDS
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.measure.search.fewer_steps import FewerSteps
from cache_dit_serving.measure.search.measures import MEASURES, OF_KIND, SNR, SSIM
from cache_dit_serving.measure.search.samples import Result
from cache_dit_serving.media.values import MediaKind

CACHED: tuple[Speed, ...] = SPEEDS[1:]
"""Speeds that run a cache, least approximation first."""
Floors = Mapping[Speed, Mapping[str, float]]
"""Values that the worst decile of a speed's outputs must reach, by measure."""
OF_PICTURES: Floors = {"high": {SSIM.name: 0.99}, "balanced": {SSIM.name: 0.98}, "fast": {SSIM.name: 0.97}}
OF_SOUNDS: Floors = {"high": {SNR.name: 40.0}, "balanced": {SNR.name: 30.0}, "fast": {SNR.name: 20.0}}


def floors_of(texts: Sequence[str], kind: MediaKind) -> dict[Speed, dict[str, float]]:
    """Return the floors of each speed: the default ones, changed by texts such as `ssim=.95` and `high:flip=.02`.

    A floor without a speed holds for every speed and replaces the default of `fast`. A floor of one speed replaces the
    default of that speed.

    Raises:
        ConfigError: a text is not [SPEED:]MEASURE=VALUE, or names a measure that outputs of this kind do not have.
    """
    floors: dict[Speed, dict[str, float]] = {}
    of_all: dict[str, float] = {}
    known = [measure.name for measure in OF_KIND[kind]]
    for text in texts:
        left, equals, number = text.partition("=")
        speed, colon, name = left.rpartition(":")
        if not equals or name not in known or (colon and speed not in CACHED):
            raise ConfigError(
                f"--floor {text}: write MEASURE=VALUE or SPEED:MEASURE=VALUE, such as ssim=.95 or high:{known[0]}=.02; "
                f"measures: {', '.join(known)}; speeds: {', '.join(CACHED)}"
            )
        try:
            value = float(number)
        except ValueError:
            raise ConfigError(f"--floor {text}: {number!r} is not a number") from None
        found = next((each for each in CACHED if each == speed), None)
        (of_all if found is None else floors.setdefault(found, {}))[name] = value
    usual = OF_SOUNDS if kind is MediaKind.AUDIO else OF_PICTURES
    replaced = {"fast"} if of_all else set()
    own = {speed: floors.get(speed) or ({} if speed in replaced else dict(usual[speed])) for speed in CACHED}
    return {speed: _stricter(of_all, own[speed]) for speed in CACHED}


def _stricter(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    """Return both floors; of a measure in both, the one that asks for more."""
    both = {**a, **b}
    for name in a.keys() & b.keys():
        measure = MEASURES[name]
        both[name] = measure.value(min(measure.loss(a[name]), measure.loss(b[name])))
    return both


def floors_text(floors: Mapping[str, float]) -> str:
    """Return floors in words, such as `SSIM at least 0.95`."""
    return " and ".join(
        f"{MEASURES[name].title} at {'most' if MEASURES[name].lower_is_closer else 'least'} {value:g}"
        for name, value in floors.items()
    )


def missed(result: Result, floors: Mapping[str, float], *, beyond_doubt: bool) -> list[str]:
    """Return the measures whose floor the worst decile of a result misses.

    Args:
        beyond_doubt: take the bound on the worst decile of all outputs, instead of that of the measured ones.
    """
    found = []
    for name, floor in floors.items():
        measure = MEASURES[name]
        worst = result.worst_bound(measure) if beyond_doubt else result.worst(measure).value
        if worst > measure.loss(floor):
            found.append(name)
    return found


@dataclass(frozen=True)
class Choice:
    """Points chosen for one speed among those that hold its floors in the search."""

    speed: Speed
    floors: Mapping[str, float]
    named: Result | None
    """Fastest cached point of the reference's steps, preferring those that do not lose to fewer steps; None: no such
    point holds the floors. A server's speed can be no other, since it changes the cache alone."""
    best: Result | None
    """Fastest point of any steps, cached or not; None: none holds the floors."""


def choose(results: Sequence[Result], floors: Floors, curve: FewerSteps, *, steps: int) -> list[Choice]:
    """Return the choice of each speed. Floors count by the bound on the worst decile.

    Points that reuse nothing are left out.
    """
    choices = []
    for speed in CACHED:
        useful = [result for result in results if result.point.settings is None or result.cached_steps]
        holding = [result for result in useful if not missed(result, floors[speed], beyond_doubt=True)]
        holding.sort(key=lambda result: result.median_ratio)
        cached = [result for result in holding if result.point.settings and result.point.steps == steps]
        not_losing = [result for result in cached if curve.verdict(result).outcome != "loses"]
        named = next(iter(not_losing or cached), None)
        choices.append(Choice(speed, floors[speed], named, next(iter(holding), None)))
    return choices
