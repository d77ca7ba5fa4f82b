"""Search on a synthetic drawer, put together as the command does it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from optuna.storages import BaseStorage, InMemoryStorage

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.measure.search.floors import CANDIDATES, Floors
from cache_dit_serving.measure.search.measures import PSNR
from cache_dit_serving.measure.search.measuring import Measuring
from cache_dit_serving.measure.search.outcome import Outcome, conclude
from cache_dit_serving.measure.search.points import Point, cases_of
from cache_dit_serving.measure.search.samples import Result, Sample, Samples
from cache_dit_serving.measure.search.space import Space
from cache_dit_serving.measure.search.study import Search
from tests.support.synthetic import STEPS, Synthetic

CASES = cases_of([f"prompt {number}" for number in range(5)], (0, 1), 5)
UNSEEN = cases_of([f"unseen {number}" for number in range(4)], (0, 1), 4)
EASY: Floors = {"high": {"psnr_db": 30.0}, "balanced": {"psnr_db": 26.0}, "fast": {"psnr_db": 20.0}}


@dataclass
class Run:
    """A search in a folder, as the command makes it."""

    folder: Path
    drawer: Synthetic

    def __post_init__(self) -> None:
        self.space = Space(self.drawer.subject)
        self.samples = Samples(self.folder / "samples.jsonl")
        self.measuring = Measuring(self.drawer, self.samples, CASES)
        self.storage: BaseStorage = InMemoryStorage()

    @property
    def search(self) -> Search:
        return Search(self.space, self.measuring, PSNR, self.storage, seed=2)

    def outcome(self, floors: Floors = EASY, *, verify: bool = True) -> Outcome:
        unseen, fixed = Samples(self.folder / "unseen.jsonl"), self.space.fixed()

        def conclusion() -> Outcome:
            return conclude(
                subject=self.drawer.subject,
                measure=PSNR,
                floors=floors,
                fixed=fixed,
                samples=self.samples,
                cases=CASES,
                unseen_samples=unseen,
                unseen=UNSEEN,
                trials=self.search.outcomes(),
                reference_s=1.0,
            )

        for _ in CANDIDATES if verify else ():
            Measuring(self.drawer, unseen, UNSEEN).measure(conclusion().wanted, lambda: None)
        return conclusion()


def point_of(threshold: float, steps: int = STEPS) -> Point:
    """Return a point of this threshold."""
    return Point(steps, CacheSettings(Fn_compute_blocks=1, residual_diff_threshold=threshold, max_warmup_steps=2))


def result_of(point: Point, *pairs: tuple[float, float]) -> Result:
    """Return a result of these ratios of time and losses, one pair a case."""
    reused = 0 if point.settings is None else 5
    samples = {case: Sample(ratio, ratio, {"flip": loss}, reused) for case, (ratio, loss) in enumerate(pairs)}
    return Result(point, samples)


def spread(point: Point, ratio: float, loss: float, count: int = 8) -> Result:
    """Return a result whose losses differ by a tenth and more."""
    return result_of(point, *[(ratio, loss * (1 + 0.05 * (case % 5 - 2))) for case in range(count)])
