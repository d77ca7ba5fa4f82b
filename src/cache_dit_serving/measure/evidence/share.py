"""Share of outputs beyond a floor, with a confidence interval that holds at all times at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cache_dit_serving.measure.statistics import CONFIDENCE

PRIOR = 0.5
"""Both parameters of the beta mixture: that of Jeffreys, Krichevsky and Trofimov."""
_HALVINGS = 60
"""Halvings that find an end of the interval, to 2^-60."""


@dataclass(frozen=True)
class Share:
    """Share of outputs beyond a floor, and its interval of a confidence sequence.

    The interval may be read after each output, and at a moment that the outputs themselves choose, such as an alarm: a
    constant share lies in all intervals of the sequence with the given confidence. If the share changes on the way, the
    interval is about none of its values.
    """

    beyond: int
    outputs: int
    low: float
    high: float

    @property
    def value(self) -> float | None:
        """Observed share, 0 to 1; None before the first output."""
        return self.beyond / self.outputs if self.outputs else None


def share_of(beyond: int, outputs: int, confidence: float = CONFIDENCE) -> Share:
    """Return the share and the confidence sequence's interval for it.

    Against a share p, bet each time on the share seen so far, (x before + 1/2) / (outputs before + 1). The wealth is
    the ratio of the beta mixture B(beyond + 1/2, within + 1/2) / B(1/2, 1/2) to the likelihood p^beyond (1 - p)^within:
    a martingale that begins at 1 if p is the true share. By Ville's inequality it ever reaches 1 / (1 - confidence)
    with a chance of at most 1 - confidence, so the interval is of those p for which it has not (Robbins 1970,
    "Statistical methods related to the law of the iterated logarithm", Ann. Math. Statist. 41(5), 1397-1409).
    """
    within = outputs - beyond
    least = _log_mixture(beyond, within) + math.log(1 - confidence)  # log likelihood below which a share is out
    low = _end(0.0, beyond, within, least) if beyond else 0.0
    high = _end(1.0, beyond, within, least) if within else 1.0
    return Share(beyond, outputs, low, high)


def _end(outer: float, beyond: int, within: int, least: float) -> float:
    """Return the end of the interval between the observed share and 0 or 1, to the outside of it."""
    inner = beyond / (beyond + within)
    for _ in range(_HALVINGS):
        middle = (inner + outer) / 2
        if _log_likelihood(middle, beyond, within) >= least:
            inner = middle
        else:
            outer = middle
    return outer


def _log_likelihood(p: float, beyond: int, within: int) -> float:
    terms = [(beyond, p), (within, 1 - p)]
    return sum(count * math.log(each) if each > 0 else -math.inf for count, each in terms if count)


def _log_mixture(beyond: int, within: int) -> float:
    return _log_beta(beyond + PRIOR, within + PRIOR) - _log_beta(PRIOR, PRIOR)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
