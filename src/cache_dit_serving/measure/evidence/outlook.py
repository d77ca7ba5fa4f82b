"""Evidence of a watch in numbers for people: the share beyond the floor, and the outputs until the state changes."""

from __future__ import annotations

from dataclasses import dataclass

from cache_dit_serving.measure.evidence.betting import HOLD_BETS, MISS_BETS, detect, detected, prove, proved
from cache_dit_serving.measure.evidence.floor_watch import FloorState, FloorWatch
from cache_dit_serving.measure.evidence.share import Share, share_of

FARTHEST = 2000
"""Outputs that an outlook reaches ahead."""


@dataclass(frozen=True)
class Outlook:
    """Evidence of a watch, and what is to come if the share stays as it is."""

    now: Share
    """Outputs of the current state's start on."""
    before: Share | None
    """Outputs that made the last alarm, or the proof after one; None: there was no alarm."""
    to_alarm: int | None
    """Further outputs until the floor counts as missed; None: it is missed, there is no output yet, or more than
    `FARTHEST`."""
    to_proof: int | None
    """Further outputs until the floor is proved to hold; None: it holds, there is no output yet, or more than
    `FARTHEST`."""


def outlook(watch: FloorWatch, state: FloorState) -> Outlook:
    """Return the evidence of a watch in a state.

    The number of outputs to a change is that at which stakes that grow at the mean rate of their logarithms reach the
    threshold. It is about the mean number, see docs/benchmarks/floors.md.
    """
    now = share_of(state.beyond, state.outputs)
    before = share_of(state.beyond_before, state.outputs_before) if state.outputs_before else None
    to_alarm = to_proof = None
    if now.value is not None and state.status != "missed":
        to_alarm = outputs_to_alarm(watch, state, now.value)
    if now.value is not None and state.status != "holds":
        to_proof = outputs_to_proof(watch, state, now.value)
    return Outlook(now, before, to_alarm, to_proof)


def outputs_to_alarm(watch: FloorWatch, state: FloorState, share: float) -> int | None:
    """Return the further outputs to an alarm at a share of outputs beyond the floor; None: more than `FARTHEST`."""
    stakes, growths = state.alarm, [bet.growth(share) for bet in MISS_BETS]
    for count in range(1, FARTHEST + 1):
        stakes = detect(stakes, growths)
        if detected(stakes) >= watch.runs_to_false_alarm:
            return count
    return None


def outputs_to_proof(watch: FloorWatch, state: FloorState, share: float) -> int | None:
    """Return the further outputs to a proof at a share of outputs beyond the floor; None: more than `FARTHEST`."""
    stakes, growths = state.proof, [bet.growth(share) for bet in HOLD_BETS]
    for count in range(1, FARTHEST + 1):
        outputs = state.outputs + count
        stakes = prove(stakes, outputs - 1, growths)
        if proved(stakes, outputs) >= 1 / watch.wrong_proof:
            return count
    return None
