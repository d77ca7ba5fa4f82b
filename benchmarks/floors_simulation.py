"""Simulation of many watches of one floor, on outputs whose share beyond it is known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_dit_serving.measure.evidence.betting import HOLD_BETS, LIMIT, MISS_BETS, Bet
from cache_dit_serving.measure.evidence.floor_watch import FloorWatch
from cache_dit_serving.measure.evidence.share import PRIOR
from cache_dit_serving.measure.statistics import CONFIDENCE

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Counts = NDArray[np.int64]

STATUSES = ("unknown", "holds", "missed")
UNKNOWN, HOLDS, MISSED = range(3)
GOOD = 0.02
"""Share of outputs beyond the floor at a speed that is well within it."""
BLOCK = 256
"""Outputs that are drawn at once."""
SEED = 20261128


class Watches:
    """States of many watches of one floor, each as `FloorWatch` has it."""

    def __init__(self, count: int, watch: FloorWatch) -> None:
        self.watch = watch
        self.status = np.full(count, UNKNOWN)
        self.outputs = np.zeros(count, np.int64)
        self.alarm = np.zeros((len(MISS_BETS), count))
        self.proof = np.zeros((len(HOLD_BETS), count))

    def step(self, beyond: Flags) -> None:
        """Take one more output in each watch."""
        watched = self.status != MISSED
        self.alarm = np.where(watched, (1 + self.alarm) * factors(MISS_BETS, beyond), 0)
        alarmed = watched & (self.alarm.mean(axis=0) >= self.watch.runs_to_false_alarm)
        part = 1 / ((self.outputs + 1) * (self.outputs + 2))  # `budget` of each watch
        self.proof = np.where(self.status == HOLDS, 0, (part + self.proof) * factors(HOLD_BETS, beyond))
        self.outputs += 1
        wealth = 1 / (self.outputs + 1) + self.proof.mean(axis=0)
        proved = (self.status != HOLDS) & ~alarmed & (wealth >= 1 / self.watch.wrong_proof)
        afresh = alarmed | (proved & ~watched)
        self.alarm[:, afresh] = 0
        self.proof[:, alarmed | proved] = 0
        self.outputs[afresh] = 0
        self.status = np.where(alarmed, MISSED, np.where(proved, HOLDS, self.status))

    def keep(self, which: Flags) -> None:
        """Drop the other watches."""
        self.status, self.outputs = self.status[which], self.outputs[which]
        self.alarm, self.proof = self.alarm[:, which], self.proof[:, which]


@dataclass(frozen=True)
class Times:
    """Outputs until each watch came to a status; those that did not by the limit count as the limit."""

    outputs: Counts
    came: Flags

    @property
    def mean(self) -> float:
        """Mean number of outputs; if some watches did not come to the status, it is too low."""
        return float(self.outputs.mean())

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return float(self.outputs.std(ddof=1) / math.sqrt(len(self.outputs)))

    @property
    def decile(self) -> float:
        """Number of outputs within which nine in ten watches came to the status."""
        return float(np.quantile(self.outputs, 0.9))


def factors(bets: tuple[Bet, ...], beyond: Flags) -> Floats:
    """Return the factors of each bet in each watch."""
    within, outside = (np.array([getattr(bet, name) for bet in bets])[:, None] for name in ("within", "beyond"))
    return np.where(beyond, outside, within)


def draws(rng: np.random.Generator, count: int) -> Iterator[Floats]:
    """Yield uniform numbers for each output of so many watches, for ever."""
    while True:
        yield from rng.random((BLOCK, count))


def times_to(status: int, watches: Watches, share: float, limit: int, rng: np.random.Generator) -> Times:
    """Return the outputs until watches come to a status, at a share of outputs beyond the floor. Uses them up."""
    count = len(watches.status)
    outputs, came, left = np.full(count, limit), np.zeros(count, bool), np.arange(count)
    for number, drawn in zip(range(1, limit + 1), draws(rng, count), strict=False):
        watches.step(drawn[: len(left)] < share)
        found = watches.status == status
        if found.any():
            outputs[left[found]], came[left[found]] = number, True
            left = left[~found]
            watches.keep(~found)
            if not len(left):
                break
    return Times(outputs, came)


def times_to_alarm(
    share: float, *, runs: int, good_outputs: int = 0, limit: int = 20_000, seed: int = SEED, watch: FloorWatch
) -> Times:
    """Return the outputs to an alarm, counted from a change of the share. Alarms before the change are left out."""
    rng = np.random.default_rng(seed)
    watches = Watches(runs, watch)
    for _, drawn in zip(range(good_outputs), draws(rng, runs), strict=False):
        watches.step(drawn < GOOD)
    watches.keep(watches.status != MISSED)
    return times_to(MISSED, watches, share, limit, rng)


def times_to_proof(
    share: float,
    *,
    runs: int,
    bad_outputs: int = 0,
    bad_share: float = 0.5,
    limit: int = 4000,
    seed: int = SEED,
    watch: FloorWatch,
) -> Times:
    """Return the outputs from a repair to the proof, some outputs after the alarm. Proofs before it are left out."""
    rng = np.random.default_rng(seed)
    watches = Watches(runs, watch)
    watches.status[:] = MISSED
    for _, drawn in zip(range(bad_outputs), draws(rng, runs), strict=False):
        watches.step(drawn < bad_share)
    watches.keep(watches.status == MISSED)
    return times_to(HOLDS, watches, share, limit, rng)


def times_of_one_start(
    share: float, *, runs: int, good_outputs: int, limit: int = 20_000, seed: int = SEED, watch: FloorWatch
) -> Times:
    """Return the outputs to an alarm by the same bets and threshold, but all staked at the first output alone."""
    rng = np.random.default_rng(seed)
    logs = np.zeros((len(MISS_BETS), runs))
    outputs, came = np.full(runs, limit), np.zeros(runs, bool)
    for number, drawn in zip(range(1 - good_outputs, limit + 1), draws(rng, runs), strict=False):
        logs += np.log(factors(MISS_BETS, drawn < (share if number > 0 else GOOD)))
        if number > 0:
            found = ~came & (np.exp(logs).mean(axis=0) >= watch.runs_to_false_alarm)
            outputs[found], came[found] = number, True
            if came.all():
                break
    return Times(outputs, came)


def changes(shares: Floats, *, outputs: int, seed: int = SEED, watch: FloorWatch) -> tuple[Counts, Floats]:
    """Return how often each watch turned to or from `missed`, and the part of the outputs at which it was missed."""
    watches = Watches(len(shares), watch)
    found, missed = np.zeros(len(shares), np.int64), np.zeros(len(shares))
    for _, drawn in zip(range(outputs), draws(np.random.default_rng(seed), len(shares)), strict=False):
        before = watches.status == MISSED
        watches.step(drawn < shares)
        now = watches.status == MISSED
        found += before != now
        missed += now
    return found, missed / outputs


def ever_outside(share: float, *, outputs: int, runs: int, confidence: float = CONFIDENCE, seed: int = SEED) -> float:
    """Return the part of confidence sequences that leave out the true share at any of their outputs."""
    beyond = (np.random.default_rng(seed).random((outputs, runs)) < share).cumsum(axis=0)
    within = np.arange(1, outputs + 1)[:, None] - beyond
    gamma = np.array([math.lgamma(count + PRIOR) for count in range(outputs + 1)])
    both = np.array([math.lgamma(count + 2 * PRIOR) for count in range(1, outputs + 1)])[:, None]
    constant = 2 * math.lgamma(PRIOR) - math.lgamma(2 * PRIOR)
    mixture = gamma[beyond] + gamma[within] - both - constant
    wealth = mixture - beyond * math.log(share) - within * math.log(1 - share)
    return float((wealth > -math.log(1 - confidence)).any(axis=0).mean())


def theory(share: float, threshold: float) -> float:
    """Return log(threshold) / KL: outputs to an alarm of a detector that knows the share, for a great threshold."""
    pairs = ((share, LIMIT), (1 - share, 1 - LIMIT))
    return math.log(threshold) / sum(p * math.log(p / q) for p, q in pairs if p > 0)
