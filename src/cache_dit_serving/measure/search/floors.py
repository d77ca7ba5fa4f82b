"""Floors: how like its reference an output of each speed must be, and the points that are chosen to hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.caching.speeds import SPEEDS
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.measure.distances.table import MEASURES, Measure
from cache_dit_serving.measure.search.fewer_steps import FewerSteps
from cache_dit_serving.measure.search.measures import OF_KIND
from cache_dit_serving.measure.search.samples import SURE, Result
from cache_dit_serving.media.values import MediaKind

CACHED: tuple[Speed, ...] = SPEEDS[1:]
"""Speeds that run a cache, least approximation first."""
Floors = Mapping[Speed, Mapping[str, float]]
"""Values that the worst decile of a speed's outputs must reach, by measure."""
CANDIDATES = (SURE, 0.95, 0.99)
"""Confidence with which each candidate of a speed holds its floors on the search's prompts."""
STEPS = "steps"
"""Name of the floor that is the likeness of an uncached run with this share of the reference's steps."""
USUAL: Floors = {"high": {STEPS: 0.75}, "balanced": {STEPS: 0.5}, "fast": {STEPS: 1 / 3}}


def floors_of(texts: Sequence[str], kind: MediaKind) -> dict[Speed, dict[str, float]]:
    """Return the floors of each speed: the default ones, changed by texts such as `ssim=.95` and `high:flip=.02`.

    A floor without a speed holds for every speed and replaces the default of `fast`. A floor of one speed replaces the
    default of that speed, and the floor of every speed by the same measure.

    Raises:
        ConfigError: a text is not [SPEED:]MEASURE=VALUE, or names a measure that outputs of this kind do not have.
    """
    of_all, of_one = parsed_floors(texts, kind)
    usual = {speed: {} if speed == "fast" and of_all else dict(USUAL[speed]) for speed in CACHED}
    return {
        speed: {**of_all, **of_one[speed]} if speed in of_one else _stricter(of_all, usual[speed]) for speed in CACHED
    }


def parsed_floors(texts: Sequence[str], kind: MediaKind) -> tuple[dict[str, float], dict[Speed, dict[str, float]]]:
    """Return the floors of every speed and those of one speed, by texts such as `ssim=.95` and `high:flip=.02`.

    Raises:
        ConfigError: as :func:`floors_of`.
    """
    of_all: dict[str, float] = {}
    of_one: dict[Speed, dict[str, float]] = {}
    known = [*(measure.name for measure in OF_KIND[kind]), STEPS]
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
        if not math.isfinite(value):
            raise ConfigError(f"--floor {text}: {number!r} is not a finite number")
        if name == STEPS and not 0 < value < 1:
            raise ConfigError(f"--floor {text}: write a share of the reference's steps between 0 and 1, such as .5")
        found = next((each for each in CACHED if each == speed), None)
        (of_all if found is None else of_one.setdefault(found, {}))[name] = value
    return of_all, of_one


def _stricter(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    """Return both floors; of a measure in both, the one that asks for more."""
    both = {**a, **b}
    for name in a.keys() & b.keys():
        lower = name != STEPS and not MEASURES[name].higher_is_better
        both[name] = min(a[name], b[name]) if lower else max(a[name], b[name])
    return both


def in_values(floors: Floors, results: Sequence[Result], measure: Measure, *, steps: int) -> Floors:
    """Return the floors with each share of steps replaced by the worst decile of the uncached run next to it.

    Args:
        results: points on the search's prompts, uncached runs among them.
        measure: measure that is searched.
        steps: the reference's.
    """
    uncached = [result for result in results if result.point.settings is None and result.point.steps < steps]
    found = {}
    for speed, values in floors.items():
        given = {name: value for name, value in values.items() if name != STEPS}
        if STEPS in values and uncached:
            run = _nearest(uncached, values[STEPS] * steps)
            given = _stricter(given, {measure.name: measure.value(run.worst(measure).value)})
        found[speed] = given
    return found


def _nearest(results: Sequence[Result], steps: float) -> Result:
    """Return the result whose number of steps is nearest."""
    return min(results, key=lambda result: abs(result.point.steps - steps))


def floors_text(floors: Mapping[str, float]) -> str:
    """Return floors in words, such as `SSIM at least 0.95`."""
    return " and ".join(_floor_text(MEASURES[name], value) for name, value in floors.items())


def _floor_text(measure: Measure, value: float) -> str:
    bound = f"{measure.title} at {'least' if measure.higher_is_better else 'most'} {value:.4g}"
    return f"{bound} {measure.unit}" if measure.unit else bound


def missed(result: Result, floors: Mapping[str, float], *, sure: float) -> list[str]:
    """Return the measures whose floor the worst decile of all outputs may miss.

    Args:
        sure: confidence of the bound on the worst decile that is held against the floor.
    """
    return [
        name for name, floor in floors.items() if result.worst_bound(MEASURES[name], sure) > MEASURES[name].loss(floor)
    ]


@dataclass(frozen=True)
class Choice:
    """Points that a search proposes for one speed, on its own prompts."""

    speed: Speed
    floors: Mapping[str, float]
    candidates: list[Result]
    """Cached points in the order in which they are tried on unseen prompts; empty: none holds the floors."""
    plain: Result | None
    """Fastest uncached run that holds the floors; None: none does."""

    @property
    def sure(self) -> float:
        """Confidence with which a candidate must hold on unseen prompts.

        Bonferroni's correction: the chance that any of the candidates passes by luck alone is that of a single one.
        """
        return 1 - (1 - SURE) / max(1, len(self.candidates))


def choose(results: Sequence[Result], floors: Floors, curve: FewerSteps) -> list[Choice]:
    """Return the choice of each speed, among points of any steps. Floors count by the bound on the worst decile.

    The first candidate is the fastest point; each further one is the fastest of those that hold the floors with more
    confidence. Points that lose to fewer steps are candidates only if there are no others. Points that reuse nothing
    are left out.
    """
    choices = []
    for speed in CACHED:
        useful = [result for result in results if result.point.settings is None or result.cached_steps]
        useful.sort(key=lambda result: result.median_ratio)
        holding = [result for result in useful if not missed(result, floors[speed], sure=SURE)]
        cached = [result for result in holding if result.point.settings is not None]
        pool = [result for result in cached if curve.verdict(result).outcome != "loses"] or cached
        candidates: list[Result] = []
        for sure in CANDIDATES:
            found = next((result for result in pool if not missed(result, floors[speed], sure=sure)), None)
            if found is not None and found not in candidates:
                candidates.append(found)
        plain = next((result for result in holding if result.point.settings is None), None)
        choices.append(Choice(speed, floors[speed], candidates, plain))
    return choices
