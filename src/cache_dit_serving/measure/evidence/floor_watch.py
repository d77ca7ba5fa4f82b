"""Watch on one measure's floor at one speed: it holds, it is missed, or that is unknown.

Outputs of live traffic are taken one by one, and only by the side of the floor that they lie on. The floor holds if at
most a tenth of the speed's outputs lie beyond it, as in the search (`measure/search/floors.py`). Two tests of opposite
hypotheses run, see `betting.py`:

    unknown --proof--> holds          the proof that the share is below a tenth reaches 1 / WRONG_PROOF
    unknown, holds --alarm--> missed  the detector that the share is above a tenth reaches RUNS_TO_FALSE_ALARM
    missed --proof--> holds           likewise a proof, begun afresh at the alarm

Each change needs evidence against the state before it, so a share near a tenth seldom makes any: hysteresis without a
margin to choose. The states depend on nothing but the outputs, in their order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from cache_dit_serving.measure.distances.table import MEASURES, Measure
from cache_dit_serving.measure.evidence.betting import (
    HOLD_BETS,
    MISS_BETS,
    NO_MISS,
    NO_PROOF,
    Stakes,
    detect,
    detected,
    prove,
    proved,
)
from cache_dit_serving.measure.evidence.samples import Sample

Status = Literal["unknown", "holds", "missed"]
RUNS_TO_FALSE_ALARM = 2000.0
"""Least mean number of shadow runs from a start to a false alarm of one speed. A thousand outputs a day, a twentieth of
them drawn again, make 50 runs a day: 40 days for a speed at the very edge, and far longer for one that is well within
its floors."""
WRONG_PROOF = 0.05
"""Greatest chance that a missed floor is ever taken for held, from one alarm on. 36 outputs in a row within the floor
are proof."""


@dataclass(frozen=True)
class FloorState:
    """State of a watch after some outputs; the first one is `FloorState()`."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", allow_inf_nan=False)

    status: Status = "unknown"
    outputs: int = 0
    """Outputs since the start: of the watch, or of the last change to or from `missed`."""
    beyond: int = 0
    """Those that lay beyond the floor."""
    alarm: Stakes = NO_MISS
    """Stakes of the detector; not in use while the floor is missed."""
    proof: Stakes = NO_PROOF
    """Stakes of the proof; not in use once the floor holds."""
    outputs_before: int = 0
    """Outputs from the start before to this one: those that made the alarm or the proof."""
    beyond_before: int = 0


STATES = TypeAdapter(FloorState)
"""States as JSON values and back."""


@dataclass(frozen=True)
class FloorWatch:
    """Watch on the floor of one measure at one speed."""

    measure: str
    floor: float
    """Value that at most a tenth of the outputs may lie beyond."""
    runs_to_false_alarm: float = RUNS_TO_FALSE_ALARM
    wrong_proof: float = WRONG_PROOF

    def __post_init__(self) -> None:
        """Check the measure and the floor.

        Raises:
            ValueError: there is no such measure, or the floor is not a finite number.
        """
        if self.measure not in MEASURES:
            raise ValueError(f"{self.measure!r} is no measure")
        if not math.isfinite(self.floor):
            raise ValueError(f"the floor of {self.measure} is not a finite number")

    @property
    def _measure(self) -> Measure:
        return MEASURES[self.measure]

    def beyond(self, sample: Sample) -> bool | None:
        """Return True if an output lies beyond the floor; None if the sample has no value of the measure."""
        loss = sample.loss(self._measure)
        return None if loss is None else loss > self._measure.loss(self._measure.finite(self.floor))

    def step(self, state: FloorState, beyond: bool) -> FloorState:
        """Return the state after one more output."""
        alarm, proof = state.alarm, state.proof
        outputs, count = state.outputs + 1, state.beyond + beyond
        if state.status != "missed":
            alarm = detect(alarm, (bet.factor(beyond) for bet in MISS_BETS))
            if detected(alarm) >= self.runs_to_false_alarm:
                return FloorState("missed", outputs_before=outputs, beyond_before=count)
        if state.status != "holds":
            proof = prove(proof, state.outputs, (bet.factor(beyond) for bet in HOLD_BETS))
            if proved(proof, outputs) >= 1 / self.wrong_proof:
                if state.status == "missed":
                    return FloorState("holds", outputs_before=outputs, beyond_before=count)
                return FloorState("holds", outputs, count, alarm, NO_PROOF, state.outputs_before, state.beyond_before)
        return FloorState(state.status, outputs, count, alarm, proof, state.outputs_before, state.beyond_before)

    def take(self, state: FloorState, sample: Sample) -> FloorState:
        """Return the state after one more sample. One without a value of the measure changes nothing."""
        beyond = self.beyond(sample)
        return state if beyond is None else self.step(state, beyond)

    def fold(self, samples: Iterable[Sample], state: FloorState | None = None) -> FloorState:
        """Return the state after samples, by default from the start."""
        state = state or FloorState()
        for sample in samples:
            state = self.take(state, sample)
        return state

    def restore(self) -> FloorState:
        """Return the state of a fresh start, which an operator may order whatever the state is."""
        return FloorState()

    def as_json(self, state: FloorState) -> dict[str, Any]:
        """Return a state of this watch as JSON values, with all that it depends on."""
        return {"watch": self._identity(), **STATES.dump_python(state, mode="json")}

    def from_json(self, value: object) -> FloorState:
        """Return the state that `as_json` gave.

        Raises:
            ValueError: it is of another watch or of another version of this code. Fold over the samples again.
        """
        fields = dict(value) if isinstance(value, Mapping) else {}
        if fields.pop("watch", None) != self._identity():
            raise ValueError("the state is of another watch")
        try:
            state = STATES.validate_python(fields)
        except ValidationError:
            raise ValueError("the state has fields or values that do not fit") from None
        if (len(state.alarm), len(state.proof)) != (len(NO_MISS), len(NO_PROOF)):
            raise ValueError("the state has stakes of other bets")
        return state

    def _identity(self) -> dict[str, Any]:
        bets = [[bet.within, bet.beyond] for bet in (*MISS_BETS, *HOLD_BETS)]
        return {**asdict(self), "bets": bets}
