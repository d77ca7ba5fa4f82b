"""Answer of `GET /quality`: the evidence of live traffic in figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import get_args

from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.engine.quality import Quality
from cache_dit_serving.measure.distances.table import MEASURES, Measure
from cache_dit_serving.measure.evidence.floor_watch import FloorState
from cache_dit_serving.measure.evidence.ledger import Ledger
from cache_dit_serving.measure.evidence.outlook import Outlook, outlook
from cache_dit_serving.measure.evidence.samples import Sample, Series
from cache_dit_serving.measure.evidence.summary import summary
from cache_dit_serving.schemas.answers import LiveFigures, timestamp
from cache_dit_serving.schemas.quality import (
    ComparedOutput,
    FloorEvidence,
    MeasuredDistances,
    QualityResponse,
    SpeedEvidence,
    SpeedStatus,
)

ORDER = (*get_args(Speed), "custom")

Address = Callable[[str], str]
"""URL of a kept file, by its name."""


def live_figures(quality: Quality, speed: str) -> LiveFigures | None:
    """Return the figures of live traffic of a speed as it is offered now; None if none of its outputs was compared."""
    samples = [] if quality.ledger is None else quality.ledger.samples_of(speed)
    if not samples:
        return None
    found = summary(samples, _first_measure(samples))
    return LiveFigures(
        outputs=found.count,
        speedup=round(found.speedup.value, 3),
        cached_steps=round(found.cached_steps, 2),
        medians={name: round(each.median, 6) for name, each in found.quantiles.items() if each.median is not None},
        worst_deciles={
            name: round(each.worst_decile, 6) for name, each in found.quantiles.items() if each.worst_decile is not None
        },
    )


def quality_of(quality: Quality, address: Address | None) -> QualityResponse:
    """Return the evidence so far.

    Args:
        address: returns the URLs of kept files; None: single outputs are not shown.
    """
    ledger = quality.ledger
    settings = quality.settings
    return QualityResponse(
        share=settings.share,
        at_most=settings.at_most,
        took=round(quality.took, 4),
        waiting=quality.waiting,
        speeds={} if ledger is None else {name: _status(ledger, name, quality) for name in ledger.speeds},
        evidence=[] if ledger is None else _evidence(ledger, quality, address),
        environments=quality.environments,
    )


def _status(ledger: Ledger, speed: str, quality: Quality) -> SpeedStatus:
    state = ledger.states.get(speed)
    if state is None:
        return SpeedStatus(status="unwatched", lowered_to=None, since=None)
    watched = ledger.speeds[speed].floors
    return SpeedStatus(
        status=state.status,
        lowered_to=quality.lowered.get(speed),
        since=None if state.changed_at is None else timestamp(state.changed_at),
        floors={
            name: _floor(watched[name], each, outlook(ledger.watches[speed].floors[name], each))
            for name, each in state.floors.items()
        },
    )


def _floor(floor: float, state: FloorState, outlook: Outlook) -> FloorEvidence:
    return FloorEvidence(
        floor=floor,
        status=state.status,
        outputs=state.outputs,
        beyond=state.beyond,
        share_low=round(outlook.now.low, 4),
        share_high=round(outlook.now.high, 4),
        outputs_to_alarm=outlook.to_alarm,
        outputs_to_proof=outlook.to_proof,
    )


def _evidence(ledger: Ledger, quality: Quality, address: Address | None) -> list[SpeedEvidence]:
    def order(series: Series) -> tuple[bool, int, str, int]:
        return not ledger.is_current(series), ORDER.index(series.speed), series.settings_hash, series.steps

    return [
        _series(series, list(ledger.series[series]), ledger.is_current(series), quality, address)
        for series in sorted(ledger.series, key=order)
    ]


def _series(
    series: Series, samples: Sequence[Sample], is_current: bool, quality: Quality, address: Address | None
) -> SpeedEvidence:
    def shown(chosen: Iterable[Sample]) -> list[ComparedOutput]:
        return [] if address is None else [_output(each, quality, address) for each in chosen]

    found = summary(samples, _first_measure(samples))
    return SpeedEvidence(
        speed=series.speed,
        settings_hash=series.settings_hash,
        num_inference_steps=series.steps,
        environment=series.environment,
        current=is_current,
        outputs=found.count,
        speedup=round(found.speedup.value, 3),
        speedup_low=round(found.speedup.low, 3),
        speedup_high=round(found.speedup.high, 3),
        cached_steps=round(found.cached_steps, 2),
        broken=found.broken,
        distances={
            name: MeasuredDistances(
                outputs=each.count,
                median=_rounded(each.median),
                best_decile=_rounded(each.best_decile),
                worst_decile=_rounded(each.worst_decile),
                worst_decile_bound=_rounded(each.worst_decile_bound),
            )
            for name, each in found.quantiles.items()
        },
        worst=shown(found.worst),
        newest=shown(found.newest),
    )


def _first_measure(samples: Sequence[Sample]) -> Measure:
    """Return the measure by which outputs are the worst: SSIM, or the first one that they have."""
    known = {name for sample in samples for name in sample.values}
    return MEASURES[next((name for name in ("ssim", *MEASURES) if name in known), "ssim")]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _output(sample: Sample, quality: Quality, address: Address) -> ComparedOutput:
    return ComparedOutput(
        request_id=sample.request,
        at=timestamp(sample.at),
        distances={name: round(sample.values[name], 6) for name in MEASURES if name in sample.values},
        speedup=round(sample.speedup, 3),
        cached_steps=sample.cached_steps,
        broken=sample.broken,
        files=[address(name) for name in quality.files.get(sample.request, ())],
    )
