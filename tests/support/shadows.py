"""A worker in this process whose cached outputs are drawn again, and what is found of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

from cache_dit_serving.config.shadow import ShadowSettings
from cache_dit_serving.engine.shadow_measuring import Measured, ShadowMeasuring
from cache_dit_serving.engine.shadowing import Shadowing
from cache_dit_serving.jobs.generation import Generation, OutputFile
from cache_dit_serving.jobs.shadow_runs import Shadow
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.measure.distances.outputs import distance
from cache_dit_serving.measure.evidence.samples import Sample
from cache_dit_serving.media.inputs import NO_INPUTS, Inputs
from cache_dit_serving.pipeline.protocol import Loaded
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.waiting import wait_until

ALWAYS = ShadowSettings(share=1, at_most=1)


class Compared:
    """Runs that are done, and the worker that made them."""

    def __init__(self, worker: PipelineWorker) -> None:
        self.worker = worker
        self.found: list[Shadow] = []
        worker.shadows.compare_with(self.found.append)

    def generation(self, name: str, inputs: Inputs = NO_INPUTS, *, shadowed: bool = True, **fields: Any) -> Generation:
        request = GenerateRequest.model_validate({"prompt": "a cat", "seed": 1, "num_inference_steps": 12} | fields)
        resolved = resolve(request, self.worker.loaded().model)
        planned = plan(resolved, inputs)
        chosen = Shadowing(1.0 if shadowed else 0.0, lambda: 0.0).chosen(resolved, inputs, planned)
        return Generation(name, chosen.with_calls(planned) if chosen else planned)

    def drawn(self, generation: Generation) -> list[OutputFile]:
        self.worker.submit(generation)
        return generation.result.result(60)


@contextmanager
def comparing(loaded: Loaded) -> Iterator[Compared]:
    """A worker of a loaded model, drained at the end."""
    worker = PipelineWorker.alone(lambda progress: loaded, max_queue=8, shadow=ALWAYS)
    worker.start()
    wait_until(lambda: worker.state == "ready")
    try:
        yield Compared(worker)
    finally:
        worker.drain()
        worker.join(30)


def measured(shadow: Shadow) -> Sample:
    """The sample of a run that is done, as the server measures it."""
    found: list[Measured] = []
    done = Event()

    def take(result: Measured) -> None:
        found.append(result)
        done.set()

    measuring = ShadowMeasuring(None, take)
    measuring.begin(shadow, "environment")
    assert done.wait(60)
    measuring.close()
    return found[0].sample


def check_measured_as_compared(compared: Compared, **fields: Any) -> Sample:
    """Have a request drawn again and measured; hold the sample to what `/compare` finds for the same request."""
    (file,) = compared.drawn(compared.generation("shadowed", **fields))
    wait_until(lambda: compared.found, 60)
    (shadow,) = compared.found
    sample = measured(shadow)
    plain = compared.generation("compared", shadowed=False, **fields)
    cached, uncached = compared.drawn(Generation("compared", plain.planned.compared()))
    assert cached.media is not None
    assert uncached.media is not None
    assert sample.cached_steps == file.record.cache.cached_steps == cached.record.cache.cached_steps > 0
    expected = distance(cached.media, uncached.media)
    assert expected.max_difference > 0
    # `/compare` measures what the pipeline computed, a shadow run what the caller gets: rounded to bytes.
    for name, value in sample.values.items():
        one, other, bound = value, getattr(expected, name), 5e-3
        if name == "psnr_db":  # roots of the mean square
            one, other, bound = 10 ** (-one / 20), 10 ** (-other / 20), 1e-3
        assert abs(one - other) < bound, (name, one, other)
    assert {"psnr_db", "ssim", "flip"} <= sample.values.keys()
    return sample
