"""The search itself: Optuna suggests points for two objectives, time and distance, and keeps its study in a file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from cache_dit_serving.measure.distances.table import Measure
from cache_dit_serving.measure.search.front import hopeless
from cache_dit_serving.measure.search.measuring import Measured, Measuring
from cache_dit_serving.measure.search.points import Point
from cache_dit_serving.measure.search.samples import Result
from cache_dit_serving.measure.search.space import Space

NAME = "cache settings and steps"
BATCH = 6
"""Points that share the references of a round."""
AFTER = 3
"""Cases after which a point may be given up."""
IDLE_ROUNDS = 5
"""Rounds in a row of known points alone, after which the space counts as exhausted."""


def study_file(file: Path) -> optuna.storages.RDBStorage:
    """Return the storage of a study in an SQLite file.

    A kill of the process loses nothing; a power cut may lose the newest trials.
    """

    def connected() -> sqlite3.Connection:
        connection = sqlite3.connect(file)
        connection.execute("PRAGMA synchronous = OFF")  # else a trial waits for the disk a dozen times
        return connection

    return optuna.storages.RDBStorage(f"sqlite:///{file}", engine_kwargs={"creator": connected})


class _Trial(NamedTuple):
    number: int
    point: Point


class Search:
    """Search of one space. It goes on where an earlier process ended, at the same file."""

    def __init__(
        self,
        space: Space,
        measuring: Measuring,
        measure: Measure,
        storage: optuna.storages.BaseStorage,
        *,
        seed: int = 0,
    ) -> None:
        """
        Args:
            measure: measure of distance that is searched.
            storage: the study, which is made if it is not there: see :func:`study_file`.
            seed: seed of the sampler.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._measuring = measuring
        self._measure = measure
        self._study = optuna.create_study(
            storage=storage, study_name=NAME, directions=["minimize", "minimize"], load_if_exists=True
        )
        # A resumed sampler that begins with the same seed would suggest the first points again.
        self._study.sampler = optuna.samplers.TPESampler(seed=seed + len(self._study.trials))
        self._fixed = list({point.key: point for point in space.fixed().values()}.values())
        known = list(filter(None, map(space.parameters_of, self._fixed)))
        if not self._study.trials:
            for parameters in known:  # they cost nothing more, and teach the sampler
                self._study.enqueue_trial(parameters)

    @property
    def trials(self) -> int:
        """Number of points that the optimiser suggested and that were measured or given up."""
        return len(self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL)))

    def outcomes(self) -> dict[str, int]:
        """Return the number of suggested points by outcome: measured, given up, cannot be drawn."""
        cases, counts = len(self._measuring.cases), {"measured": 0, "given up": 0, "cannot be drawn": 0}
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL)):
            point = self._point_of(trial)
            if trial.state is TrialState.FAIL or point is None:
                counts["cannot be drawn"] += 1
            else:
                whole = len(self._measuring.samples.of(point).samples) >= cases
                counts["measured" if whole else "given up"] += 1
        return counts

    def run(self, trials: int | None, check: Callable[[], None]) -> None:
        """Measure the fixed points, then suggested ones until there have been `trials`.

        Raises:
            Interrupted, TimeOver: by `check`; what was measured is kept.
        """
        self._measuring.measure(self._fixed, check)
        idle = 0
        while (trials is None or self.trials < trials) and idle < IDLE_ROUNDS:
            before = len(self._measuring.samples)
            most = BATCH if trials is None else min(BATCH, trials - self.trials)
            self._round(most, check)
            idle = 0 if len(self._measuring.samples) > before else idle + 1

    def _round(self, most: int, check: Callable[[], None]) -> None:
        check()
        batch = self._unfinished()[:most]
        batch += [self._asked() for _ in range(most - len(batch))]
        points = list({trial.point.key: trial.point for trial in batch}.values())
        ended = self._measuring.measure(points, check, self._hopeless)
        for trial in batch:
            self._tell(trial, ended)

    def _asked(self) -> _Trial:
        trial = self._study.ask()
        return _Trial(trial.number, self._space.suggest(trial))

    def _unfinished(self) -> list[_Trial]:
        """Return the trials that an earlier process did not finish; those without all parameters are closed."""
        found = []
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if (point := self._point_of(trial)) is None:
                self._study.tell(trial.number, state=TrialState.FAIL)
            else:
                found.append(_Trial(trial.number, point))
        return found

    def _point_of(self, trial: FrozenTrial) -> Point | None:
        try:
            return self._space.suggest(trial)
        except ValueError:
            return None

    def _tell(self, trial: _Trial, ended: Measured) -> None:
        key = trial.point.key
        if key in ended.failed:
            self._study.tell(trial.number, state=TrialState.FAIL)
            return
        # A point given up has values too: those of its first cases teach the sampler as much.
        result = self._measuring.samples.of(trial.point)
        self._study.tell(trial.number, [result.median_ratio, result.mean_loss(self._measure)])

    def _hopeless(self, result: Result) -> Result | None:
        """Return the rival that leaves a point without hope.

        Only cached points are rivals: uncached runs may beat them all, and the report says by how much.
        """
        complete = self._measuring.samples.complete(len(self._measuring.cases))
        rivals = [rival for rival in complete if rival.point.settings is not None]
        return hopeless(result, rivals, self._measure, after=AFTER)
