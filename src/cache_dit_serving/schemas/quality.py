"""Answers about live evidence: the effect of the cache on the outputs of this server's own traffic."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class MeasuredDistances(BaseModel):
    """One measure over all compared outputs of a speed."""

    outputs: int = Field(description="Outputs that have it; broken ones count as farther away than any.")
    median: float | None = Field(description="null: half of the outputs are broken.")
    best_decile: float | None = Field(description="A tenth of the outputs are closer; null: nine in ten are broken.")
    worst_decile: float | None = Field(description="A tenth of the outputs are farther away; null: they are broken.")
    worst_decile_bound: float | None = Field(
        description="With 95 % confidence a tenth of all outputs are farther away than this at most; null: too few "
        "outputs to say.",
    )


class FloorEvidence(BaseModel):
    """State of one floor of a speed."""

    floor: float = Field(description="Value that at most a tenth of the outputs may lie beyond.")
    status: Literal["unknown", "holds", "missed"]
    outputs: int = Field(description="Outputs since the watch began, or since `missed` last came or went.")
    beyond: int = Field(description="Outputs among them that lie beyond the floor.")
    share_low: float = Field(description="Low end of the 95 % interval for the share of outputs beyond the floor.")
    share_high: float = Field(description="High end. The interval may be looked at after every output.")
    outputs_to_alarm: int | None = Field(
        description="Further outputs until the floor counts as missed, if the share stays; null: it is, or will not."
    )
    outputs_to_proof: int | None = Field(
        description="Further outputs until the floor is proved to hold, if the share stays; null: it is, or will not."
    )


class ComparedOutput(BaseModel):
    """One output that was compared."""

    request_id: str
    at: str = Field(description="Time of the request; ISO 8601, UTC, ms.")
    distances: dict[str, float] = Field(description="Value of each measure.")
    speedup: float
    cached_steps: int
    broken: bool = Field(False, description="true if the cached output has values that are no numbers.")
    files: list[str] = Field(
        [],
        description="URLs of the cached output, the one without the cache, and their difference; with `shadow.keep`.",
    )


class SpeedEvidence(BaseModel):
    """Evidence of live traffic about one speed, with one set of cache settings."""

    speed: str = Field(description="Name of the speed; custom for cache settings of the requests' own.")
    settings_hash: str
    num_inference_steps: int
    environment: str = Field(description="Key in `environments`.")
    current: bool = Field(description="false: of other settings, versions or hardware than this server's.")
    outputs: int = Field(description="Number of outputs that were compared.")
    speedup: float = Field(description="Median of seconds without the cache / seconds with it.")
    speedup_low: float = Field(description="Low end of its 95 % interval.")
    speedup_high: float
    cached_steps: float = Field(description="Mean, of num_inference_steps.")
    broken: int = Field(description="Cached outputs with values that are no numbers.")
    distances: dict[str, MeasuredDistances] = Field(description="By measure; docs/measures.md defines them.")
    worst: list[ComparedOutput] = Field([], description="Outputs that are the farthest away; for the scope admin.")
    newest: list[ComparedOutput] = Field([], description="Last compared outputs; for the scope admin.")


class SpeedStatus(BaseModel):
    """A speed as this server offers it now."""

    status: Literal["unwatched", "unknown", "holds", "missed"] = Field(
        description="missed: live traffic misses a floor; holds: it is proved that all floors hold."
    )
    lowered_to: str | None = Field(description="Speed that requests for this one get; null: this one.")
    since: str | None = Field(description="Time of the output that changed the status; ISO 8601, UTC, ms.")
    floors: dict[str, FloorEvidence] = Field({}, description="By measure.")


class QualityResponse(BaseModel):
    """Evidence of live traffic about each speed: cached outputs against the same ones drawn again without the cache."""

    share: float = Field(description="Share of the cached generations that are drawn again; 0: none.")
    at_most: float = Field(description="Greatest share of the time that these runs may take.")
    took: float = Field(description="Share of the time since the model was ready that they took.")
    waiting: int = Field(description="Outputs that wait for their run, of the worker that answers.")
    speeds: dict[str, SpeedStatus]
    evidence: list[SpeedEvidence] = Field(description="Those of this server's own settings first.")
    environments: dict[str, dict[str, Any]] = Field(
        description="Versions, hardware and settings that decide the outputs beside the request, by their hash."
    )
