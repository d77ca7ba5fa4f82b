"""Watch on all floors of one speed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cache_dit_serving.measure.evidence.floor_watch import (
    RUNS_TO_FALSE_ALARM,
    FloorState,
    FloorWatch,
    Status,
)
from cache_dit_serving.measure.evidence.samples import Sample


@dataclass(frozen=True)
class SpeedState:
    """State of each floor of a speed, by measure."""

    floors: Mapping[str, FloorState]
    changed_at: float | None = None
    """Time of the sample that changed the speed's status last, seconds since the epoch; None: none did."""

    @property
    def status(self) -> Status:
        """Status of the speed: `missed` if any floor is missed, `holds` if all hold."""
        found = {state.status for state in self.floors.values()}
        return "missed" if "missed" in found else "holds" if found == {"holds"} else "unknown"


class SpeedWatch:
    """Watch on the floors of one speed."""

    def __init__(self, floors: Mapping[str, float], *, runs_to_false_alarm: float = RUNS_TO_FALSE_ALARM) -> None:
        """
        The threshold of each of m detectors is m times that of the speed (Bonferroni): the mean of the detectors is
        one itself, and reaches the speed's threshold no later than any of them reaches its own. Proofs need no
        correction: a missed speed comes back only if every floor that was missed is proved to hold, and so with a
        chance of at most `wrong_proof` while one is missed still (an intersection-union test: Berger 1982,
        "Multiparameter hypothesis testing and acceptance sampling", Technometrics 24(4), 295-300).

        Args:
            floors: least or greatest value by measure; at least one.
            runs_to_false_alarm: least mean number of samples to a false alarm of the speed.

        Raises:
            ValueError: there is no floor, or no such measure.
        """
        if not floors:
            raise ValueError("a speed without a floor cannot be watched")
        self.floors = {
            name: FloorWatch(name, value, runs_to_false_alarm * len(floors)) for name, value in floors.items()
        }
        """Watch on each floor, by measure."""

    def start(self) -> SpeedState:
        """Return the state before the first sample, and after an operator's order to start afresh."""
        return SpeedState({name: watch.restore() for name, watch in self.floors.items()})

    def step(self, state: SpeedState, sample: Sample) -> SpeedState:
        """Return the state after one more sample."""
        floors = {name: watch.take(state.floors[name], sample) for name, watch in self.floors.items()}
        new = SpeedState(floors, state.changed_at)
        return new if new.status == state.status else SpeedState(floors, sample.at)

    def fold(self, samples: Iterable[Sample], state: SpeedState | None = None) -> SpeedState:
        """Return the state after samples, by default from the start."""
        state = state or self.start()
        for sample in samples:
            state = self.step(state, sample)
        return state

    def as_json(self, state: SpeedState) -> dict[str, Any]:
        """Return a state of this watch as JSON values."""
        floors = {name: watch.as_json(state.floors[name]) for name, watch in self.floors.items()}
        return {"changed_at": state.changed_at, "floors": floors}

    def from_json(self, value: Mapping[str, Any]) -> SpeedState:
        """Return the state that `as_json` gave.

        Raises:
            ValueError: it is of other floors or of another version of this code. Fold over the samples again.
        """
        floors = value.get("floors")
        if not isinstance(floors, Mapping) or floors.keys() != self.floors.keys():
            raise ValueError("the state is of other floors")
        changed_at = value.get("changed_at")
        if not isinstance(changed_at, float | int | None):
            raise ValueError("the state has a time that is not a number")
        return SpeedState({name: watch.from_json(floors[name]) for name, watch in self.floors.items()}, changed_at)
