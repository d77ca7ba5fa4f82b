"""Samples of a series, and states of a watched floor."""

from __future__ import annotations

from typing import Any

from cache_dit_serving.measure.evidence.floor_watch import FloorState, FloorWatch
from cache_dit_serving.measure.evidence.samples import Sample

WATCH = FloorWatch("ssim", 0.95)
IN_A_ROW = 36
"""Outputs within the floor that prove it."""


def sample(number: int = 0, **values: Any) -> Sample:
    fields: dict[str, Any] = {"speed": "fast", "settings_hash": "a1", "steps": 28, "pipeline_class": "Flux"}
    return Sample(at=1000.0 + number, environment="e1", request=f"r{number}", **{**fields, **values})


def after(outputs: str, state: FloorState | None = None) -> FloorState:
    """Return the state after outputs beyond the floor (x) and within it (.)."""
    state = state or FloorState()
    for output in outputs:
        state = WATCH.step(state, output == "x")
    return state
