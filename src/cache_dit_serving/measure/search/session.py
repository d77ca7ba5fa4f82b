"""One search from the references to the report, in a folder that a later run goes on with."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cache_dit_serving.config.settings import Settings
from cache_dit_serving.errors import ConfigError, ServingError
from cache_dit_serving.measure.distances.table import MEASURES
from cache_dit_serving.measure.search import report, written
from cache_dit_serving.measure.search.drawer import Drawer, Interrupted
from cache_dit_serving.measure.search.floors import CANDIDATES, floors_of
from cache_dit_serving.measure.search.front import front
from cache_dit_serving.measure.search.measures import OF_KIND
from cache_dit_serving.measure.search.measuring import Clock, Measuring, TimeOver, in_words
from cache_dit_serving.measure.search.outcome import Outcome, conclude
from cache_dit_serving.measure.search.points import Point, cases_of
from cache_dit_serving.measure.search.prompt_lists import split
from cache_dit_serving.measure.search.samples import Samples
from cache_dit_serving.measure.search.space import Space
from cache_dit_serving.measure.search.study import Search, study_file

CONDITIONS = "search.json"
USUAL_TRIALS = 60
VERIFIED_POINTS = 8
"""Points that a verification usually draws beside the reference, for the estimate of its time."""
USUAL_RATIO = 0.5
"""Usual time of such a point over the reference's."""


@dataclass(frozen=True)
class Options:
    """Choices of the user for a search."""

    folder: Path
    prompts: Sequence[str]
    prompts_are: str = "the user's"
    """Origin of the prompts, for the report."""
    seeds: Sequence[int] = (0, 1)
    outputs: int = 8
    """Outputs of each point in the search."""
    unseen: int = 16
    """Outputs of each chosen point in the verification."""
    trials: int | None = None
    budget_s: float | None = None
    floors: Sequence[str] = ()
    measure: str | None = None
    """Measure of distance; None: the first one of the output's kind."""
    seed: int = 0
    """Seed of the sampler."""


class Session:
    """Search of one model, its verification and its report."""

    def __init__(
        self,
        drawer: Drawer,
        options: Options,
        settings: Settings | None,
        *,
        interrupted: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """
        Args:
            settings: configuration of the model; None for a server's.
            interrupted: True once the user has interrupted.
            say: takes the progress in words, after each output.

        Raises:
            ConfigError: the model has no cache, a floor or measure does not fit it, or the folder holds a search under
                other conditions.
        """
        self._drawer, self._options, self._settings, self._say = drawer, options, settings, say
        subject = drawer.subject
        if not subject.cache_types:
            raise ConfigError("no cache runs on this model, so there is nothing to search")
        if subject.steps < 2:
            raise ConfigError("the reference has one step, so there is nothing to save")
        known = [measure.name for measure in OF_KIND[subject.kind]]
        if options.measure is not None and options.measure not in known:
            raise ConfigError(f"--distance {options.measure}: a model of this kind has: {', '.join(known)}")
        self._measure = MEASURES[options.measure or known[0]]
        self._floors = floors_of(options.floors, subject.kind)
        searched, unseen = split(options.prompts)
        self._cases = cases_of(searched, options.seeds, options.outputs)
        self._unseen = cases_of(unseen, options.seeds, options.unseen)
        self._begin()
        self._space = Space(subject)
        self._shown = report.Shown(self._unseen, options.folder / "shown.json")
        self._stage = "references and fewer steps"
        self._drawn = 0
        self._total: int | None = None
        samples = Samples(options.folder / "samples.jsonl")
        self._measuring = Measuring(drawer, samples, self._cases, drawn=self._after_draw)
        self._checking = Measuring(
            drawer,
            Samples(options.folder / "unseen.jsonl"),
            self._unseen,
            drawn=self._after_draw,
            show=self._shown.take,
        )
        study = study_file(options.folder / "study.db")
        self._search = Search(self._space, self._measuring, self._measure, study, seed=options.seed)
        self._began = time.monotonic()
        self._trials_before = self._search.trials
        ends_at = None if options.budget_s is None else self._began + options.budget_s
        self._clock = Clock(time.monotonic, ends_at, interrupted)

    def run(self) -> Outcome:
        """Search, verify and write the report; return the outcome. After an interruption it has what there is.

        Raises:
            ServingError: the model or the server failed. The report has what was measured until then.
        """
        try:
            return self._run()
        except ServingError:
            self._write(self._outcome(stopped=True))
            raise

    def _run(self) -> Outcome:
        stopped = False
        try:
            trials = self._options.trials
            if trials is None and self._options.budget_s is None:
                trials = USUAL_TRIALS
            self._total = trials
            self._search.run(trials, lambda: self._clock.check(self._verification_s()))
        except TimeOver:
            pass
        except Interrupted:
            stopped = True
        if not stopped:
            self._stage = "verification on unseen prompts"
            try:
                for _ in CANDIDATES:
                    self._checking.measure(self._outcome(stopped).wanted, self._only_interrupted)
            except Interrupted:
                stopped = True
        outcome = self._outcome(stopped)
        self._write(outcome)
        return outcome

    def _outcome(self, stopped: bool) -> Outcome:
        outcome = conclude(
            subject=self._drawer.subject,
            measure=self._measure,
            floors=self._floors,
            fixed=self._space.fixed(),
            samples=self._measuring.samples,
            cases=self._cases,
            unseen_samples=self._checking.samples,
            unseen=self._unseen,
            trials=self._search.outcomes(),
            reference_s=self._reference_s() or 0.0,
            interrupted=stopped,
            seconds=time.monotonic() - self._began,
        )
        return replace(outcome, conditions={**outcome.conditions, "prompts": self._options.prompts_are})

    def _write(self, outcome: Outcome) -> None:
        folder = self._options.folder
        self._shown.save()
        written.write(outcome, self._settings, folder)
        (folder / "report.md").write_text(report.markdown(outcome), encoding="utf-8")
        (folder / "report.html").write_text(report.html(outcome, self._shown), encoding="utf-8")

    def _begin(self) -> None:
        """Make the folder, or check that it holds a search under the same conditions.

        Raises:
            ConfigError: the conditions differ, or the folder cannot be made.
        """
        file = self._options.folder / CONDITIONS
        now = self._conditions()
        try:
            self._options.folder.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                file.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
                return
            before = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"--output: {self._options.folder} cannot be written: {error.strerror}") from error
        except ValueError:
            raise ConfigError(f"--output: {file} is not of this command; choose another folder") from None
        if differing := sorted(name for name in now if before.get(name) != now[name]):
            raise ConfigError(
                f"--output: {self._options.folder} holds a search under other conditions ({', '.join(differing)}); "
                "choose another folder"
            )

    def _conditions(self) -> dict[str, Any]:
        subject = self._drawer.subject
        return {
            "model": subject.name,
            "steps": subject.steps,
            "distance": self._measure.name,
            "outputs": hashlib.sha256(json.dumps(self._cases).encode()).hexdigest(),
            "unseen outputs": hashlib.sha256(json.dumps(self._unseen).encode()).hexdigest(),
            "blocks": dict(subject.block_lists),
            **subject.conditions,
        }

    def _only_interrupted(self) -> None:
        """Raise Interrupted if the user has interrupted. A verification ends even where it takes more than was left."""
        Clock(time.monotonic, None, self._clock.interrupted).check()

    def _reference_s(self) -> float | None:
        """Return the median seconds of the references, of this run if it has drawn any; None before the first."""
        found = [*self._measuring.reference_s.values(), *self._checking.reference_s.values()]
        if not found:
            results = self._measuring.samples.complete(1)
            found = [sample.seconds / sample.ratio for result in results for sample in result.samples.values()]
        return statistics.median(found) if found else None

    def _verification_s(self) -> float:
        return len(self._unseen) * (1 + VERIFIED_POINTS * USUAL_RATIO) * (self._reference_s() or 0.0)

    def _after_draw(self, point: Point) -> None:
        self._drawn += 1
        trials = self._search.trials
        if self._stage == "references and fewer steps" and trials > 0:
            self._stage = "search"
        results = self._measuring.samples.complete(len(self._cases))
        words = [
            f"{self._stage}: {trials}{f' of {self._total}' if self._total else ''} points suggested",
            f"{len(front(results, self._measure))} on the front",
            f"{self._drawn} outputs",
            f"now {point.described()}",
        ]
        if (left := self._left_s(trials)) is not None:
            words.insert(0, f"about {in_words(left)} left")
        self._say(", ".join(words))

    def _left_s(self, trials: int) -> float | None:
        """Return the estimated seconds until the end; None before the first trial."""
        gone = time.monotonic() - self._began
        if self._clock.ends_at is not None and self._total is None:
            return max(0.0, self._clock.ends_at - time.monotonic())
        done = trials - self._trials_before
        if self._total is None or done < 1:
            return None
        left = (self._total - trials) * gone / done
        if self._stage.startswith("verification"):
            drawn = self._checking.samples
            share = len(drawn) / max(1, len(self._unseen) * VERIFIED_POINTS)
            return max(0.0, (1 - share) * self._verification_s())
        return left + self._verification_s()
