"""Bets on outputs beyond a floor: wealth that grows only if the share of such outputs is not as a hypothesis has it.

The bet on x (1: the output lies beyond the floor, 0: it does not) against a share of p0 multiplies a stake by
1 + lambda (x - p0). With lambda = (q - p0) / (p0 (1 - p0)) that is the likelihood ratio of the shares q and p0: q / p0
for x = 1 and (1 - q) / (1 - p0) for x = 0. So a bet is named by its alternative q; lambda lies in (0, 1 / p0] for q
above p0, and its negative in (0, 1 / (1 - p0)] for q below it. The factor is never negative, and its mean is at most 1
as long as the share is at most p0 (q above p0) or at least p0 (q below p0), whatever the outputs before were.

References: Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting", JRSS B 86(1), 1-27,
arXiv:2010.09686; Ramdas et al. 2023, "Game-theoretic statistics and safe anytime-valid inference", Statistical Science
38(4), 576-601.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from cache_dit_serving.measure.search.samples import WORST

LIMIT = WORST
"""Greatest share of outputs beyond a floor with which the floor holds; p0 in the formulas."""
MISS_ALTERNATIVES = (0.15, 0.2, 0.3, 0.5, 0.9)
"""Shares that the detector of misses bets on, with equal weights: 0.15 for speeds near the edge, 0.9 for a sudden
break. One alternative that is right would find its share sooner by at most log(5) / KL outputs."""
HOLD_ALTERNATIVES = (0.0, 0.02, 0.05)
"""Shares that the evidence for a floor bets on, with equal weights. The bet on 0 loses all by one output beyond the
floor; the later starts of :class:`Proof` have the same bet again."""

Stakes = tuple[float, ...]
"""Wealth of each bet."""


@dataclass(frozen=True)
class Bet:
    """Factors of a stake for an output that lies within the floor, and for one beyond."""

    within: float
    beyond: float

    @classmethod
    def on(cls, share: float) -> Bet:
        """Return the bet on an alternative share of outputs beyond the floor, against `LIMIT`."""
        return cls((1 - share) / (1 - LIMIT), share / LIMIT)

    def factor(self, beyond: bool) -> float:
        return self.beyond if beyond else self.within

    def growth(self, share: float) -> float:
        """Return the factor at the mean growth of the log wealth under a share of outputs beyond the floor."""
        return math.prod(
            base**weight for base, weight in ((self.within, 1 - share), (self.beyond, share)) if weight > 0
        )


MISS_BETS = tuple(map(Bet.on, MISS_ALTERNATIVES))
HOLD_BETS = tuple(map(Bet.on, HOLD_ALTERNATIVES))
NO_MISS: Stakes = (0.0,) * len(MISS_BETS)
"""Stakes of the detector before the first output."""
NO_PROOF: Stakes = (0.0,) * len(HOLD_BETS)
"""Stakes of the proof before the first output."""


def detect(stakes: Stakes, factors: Iterable[float]) -> Stakes:
    """Return the stakes of the detector after one output: M_t = (1 + M_{t-1}) factor, for each bet.

    This is the e-detector of Shiryaev-Roberts type of Shin, Ramdas and Rinaldo 2023, "E-detectors: a nonparametric
    framework for sequential change detection", NEJSDS 2(2), 229-260, doi:10.51387/23-NEJSDS51, arXiv:2203.03532: a unit
    is staked anew before each output, so bets that began just after a change carry nothing of what came before it.
    """
    return tuple((1 + stake) * factor for stake, factor in zip(stakes, factors, strict=True))


def detected(stakes: Stakes) -> float:
    """Return the value of the detector, the mean of its stakes.

    Its run length to a false alarm at A has a mean of at least A while each output lies beyond the floor with a
    probability of at most `LIMIT`, given those before: then M_t - t is a supermartingale that starts at 0. Optional
    stopping at the alarm T, by way of min(T, n) for n to infinity, gives E[T] >= E[M_T] >= A.
    """
    return math.fsum(stakes) / len(stakes)


def budget(outputs: int) -> float:
    """Return the part of the proof's capital that is staked after this number of outputs. All parts add up to 1."""
    return 1 / ((outputs + 1) * (outputs + 2))


def prove(stakes: Stakes, outputs: int, factors: Iterable[float]) -> Stakes:
    """Return the stakes of the proof after one more output: those before, plus the new part, times the factor.

    A product of bets from a single start falls without end while the floor is missed, and would need as many good
    outputs to come back up. Here half of the capital is staked at once and the rest bit by bit, so a recovery is found
    in at most about 2 log(n) / KL outputs more after n bad ones. Both recursions are the same but for the parts staked:
    the detector's have no bounded sum, which is why its error is a rate and that of the proof a probability.

    Args:
        outputs: number of outputs before this one.
    """
    part = budget(outputs)
    return tuple((part + stake) * factor for stake, factor in zip(stakes, factors, strict=True))


def proved(stakes: Stakes, outputs: int) -> float:
    """Return the value of the proof: the mean of its stakes and the capital not staked yet.

    It is an e-process: it begins at 1 and is a non-negative supermartingale while each output lies beyond the floor
    with a probability of at least `LIMIT`, given those before. By Ville's inequality the chance that it ever reaches
    1 / alpha is then at most alpha.

    Args:
        outputs: number of outputs so far.
    """
    return 1 / (outputs + 1) + math.fsum(stakes) / len(stakes)
