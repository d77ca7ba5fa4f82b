"""Distances between the two outputs of a shadow run, measured on a thread of their own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from cache_dit_serving.errors import InternalError
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.shadow_runs import Shadow
from cache_dit_serving.measure.distances.broken import Fault, fault_of
from cache_dit_serving.measure.distances.outputs import Distance, distance
from cache_dit_serving.measure.distances.table import MEASURES
from cache_dit_serving.measure.evidence.samples import Sample
from cache_dit_serving.media.encode import encode
from cache_dit_serving.media.kinds import KINDS
from cache_dit_serving.media.outputs import Outputs
from cache_dit_serving.media.values import Media
from cache_dit_serving.pipeline.protocol import Sampled

logger = logging.getLogger(__name__)

FOLDER = "shadow"
"""Folder of the outputs that are kept, below the root of all outputs."""


@dataclass(frozen=True)
class Measured:
    """Result of one shadow run."""

    sample: Sample
    files: tuple[str, ...] = ()
    """Names of the kept files: the cached output, the one without the cache, and their difference."""


class ShadowMeasuring:
    """Measures shadow runs one after another, at the pace at which they come."""

    def __init__(self, outputs: Outputs | None, found: Callable[[Measured], None], model: str = "") -> None:
        """
        Args:
            outputs: place where both outputs and their difference are kept; None: they are not.
            found: called with each result, on the measuring thread.
            model: its name in requests, for metrics.
        """
        self._outputs = outputs
        self._found = found
        self._model = model
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shadow")

    def begin(self, shadow: Shadow, environment: str) -> None:
        """Measure a run; returns at once.

        Args:
            environment: hash of what decides the outputs beside the request.
        """
        self._thread.submit(self._measure, shadow, environment)

    def close(self) -> None:
        """Drop what is not begun, and wait for what is."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _measure(self, shadow: Shadow, environment: str) -> None:
        assert shadow.cached is not None
        assert shadow.reference is not None
        try:
            cached, reference = shadow.cached.media, shadow.reference.media
            if fault_of(reference) is Fault.NOT_FINITE:
                return
            broken = fault_of(cached) is Fault.NOT_FINITE
            apart = None if broken else distance(cached, reference)
            sample = _sample(shadow, shadow.cached, shadow.reference, environment, apart)
            _observe(sample, self._model)
            files = () if apart is None else self._kept(shadow, cached, reference, apart)
            self._found(Measured(sample, files))
        except Exception:
            logger.exception("the shadow run of request %s is not measured", shadow.id)

    def _kept(self, shadow: Shadow, cached: Media, reference: Media, apart: Distance) -> tuple[str, ...]:
        if self._outputs is None:
            return ()
        kind, calls = KINDS[cached.kind], shadow.calls
        shown = kind.difference_format or shadow.spec.format
        parameters = dict(calls.parameters)
        uncached = parameters | {
            "cache": {"enabled": False},
            "num_inference_steps": calls.reference.num_inference_steps,
        }
        files = [
            encode(cached, shadow.spec, parameters),
            encode(reference, shadow.spec, uncached),
            encode(apart.shown, replace(shadow.spec, format=shown), {}),
        ]
        try:
            return tuple(self._outputs.save_all(files, FOLDER))
        except InternalError:  # the log has it
            return ()


def _sample(shadow: Shadow, cached: Sampled, reference: Sampled, environment: str, apart: Distance | None) -> Sample:
    call, report = shadow.calls.cached, cached.record.cache
    assert call.cache.settings is not None
    values = {}
    if apart is not None:
        found = {name: getattr(apart, name, None) for name in MEASURES}
        values = {name: MEASURES[name].finite(value) for name, value in found.items() if value is not None}
    return Sample(
        at=shadow.at,
        speed=call.cache.speed,
        settings_hash=call.cache.settings.digest(),
        steps=call.num_inference_steps,
        pipeline_class=call.pipeline_class,
        environment=environment,
        values=values,
        speedup=reference.record.seconds / cached.record.seconds,
        cached_steps=report.cached_steps,
        request=shadow.id,
        broken=apart is None,
    )


def _observe(sample: Sample, model: str) -> None:
    metrics.SHADOW_SPEEDUP.labels(sample.speed, model).observe(sample.speedup)
    for name, histogram in metrics.SHADOW_DISTANCES.items():
        if (value := sample.values.get(name)) is not None:
            histogram.labels(sample.speed, model).observe(value)
