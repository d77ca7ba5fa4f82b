"""Outputs of a real worker whose operator checks them: slow checks, checks that fail, blank outputs, spans."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from PIL import Image

from cache_dit_serving import tracing
from cache_dit_serving.config.safety import SafetySettings
from cache_dit_serving.errors import ClientGone, RefusedBySafetyCheck, SafetyCheckFailed
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.output_maker import OUTPUTS_BEHIND
from cache_dit_serving.jobs.safety import Safety
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.media.provenance import DigitalSource
from cache_dit_serving.pipeline.protocol import Loaded
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.safety.check import CHECKS_AT_ONCE
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.in_process import EMBEDDED, load
from tests.support.waiting import wait_until

GO_ON = threading.Event()
BEGUN: list[str] = []
"""Subjects that came to the check, by their request."""


def by_word(subject: Mapping[str, Any]) -> Any:
    """A check of an operator."""
    BEGUN.append(subject["request_id"])
    match subject["texts"]["prompt"]:
        case "slow":
            GO_ON.wait(60)
        case "broken":
            raise SystemExit("a bug of the operator's")
        case "blank" | "refuse" as verdict:
            return {"verdict": verdict, "reason": "secret reason"}
    return {"verdict": "allow"}


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load(EMBEDDED)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    monkeypatch.setattr(tracing, "_export", tracing._Export())
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.export_spans(provider)
    return exporter


@pytest.fixture(params=["refuse"])
def worker(loaded: Loaded, request: pytest.FixtureRequest) -> Iterator[PipelineWorker]:
    settings = SafetySettings(check=f"{__name__}:by_word", timeout_s=60, on_error=request.param)
    running = PipelineWorker.alone(lambda progress: loaded, max_queue=2 * OUTPUTS_BEHIND, safety=Safety(settings))
    running.start()
    wait_until(lambda: running.state == "ready")
    GO_ON.clear()
    BEGUN.clear()
    yield running
    GO_ON.set()
    running.drain()
    running.join(30)


def asked(worker: PipelineWorker, name: str, prompt: str, **fields: Any) -> Generation:
    request = GenerateRequest.model_validate({"prompt": prompt, "seed": 1, "num_inference_steps": 1} | fields)
    generation = Generation(name, plan(resolve(request, worker.loaded().model)))
    worker.submit(generation)
    return generation


def test_a_slow_check_holds_the_pipeline_before_its_outputs_fill_the_memory(worker: PipelineWorker) -> None:
    generations = [asked(worker, str(index), "slow") for index in range(OUTPUTS_BEHIND + 3)]
    held, cancelled, last = generations[-3:]
    drawn = threading.Event()
    held.listen(lambda: drawn.set() if held.step else None)
    wait_until(lambda: held.started is not None and generations[-4].finished is not None)
    assert not drawn.wait(1), "drawn although no check has answered"
    assert len(BEGUN) <= CHECKS_AT_ONCE
    worker.cancel(held)
    with pytest.raises(ClientGone):
        held.result.result(30)
    assert not worker.stalled
    worker.cancel(cancelled)
    GO_ON.set()
    assert len(last.result.result(60)) == 1
    assert all(each.result.result(60) for each in generations[:-3])


def test_what_nobody_waits_for_any_more_is_not_checked(worker: PipelineWorker) -> None:
    several = asked(worker, "several", "slow", num_images=CHECKS_AT_ONCE + 2)
    wait_until(lambda: several.finished is not None and len(BEGUN) == CHECKS_AT_ONCE)
    worker.cancel(several)
    GO_ON.set()
    with pytest.raises(ClientGone):
        several.result.result(30)
    assert len(BEGUN) == CHECKS_AT_ONCE


def test_a_check_that_would_end_its_thread_refuses_every_output(worker: PipelineWorker) -> None:
    generations = [asked(worker, str(index), "broken") for index in range(CHECKS_AT_ONCE + 1)]
    for each in generations:
        with pytest.raises(SafetyCheckFailed):
            each.result.result(30)  # at once, not after the time limit of 60 s
    assert asked(worker, "next", "a cat").result.result(30)


@pytest.mark.parametrize("worker", ["allow"], indirect=True)
def test_a_check_that_fails_lets_outputs_pass_where_the_operator_wants_that(worker: PipelineWorker) -> None:
    (output,) = asked(worker, "one", "broken").result.result(30)
    assert Image.open(io.BytesIO(output.content)).convert("RGB").getbbox()
    with pytest.raises(RefusedBySafetyCheck):
        asked(worker, "two", "refuse").result.result(30)


def test_a_blank_output_says_that_no_model_made_it(worker: PipelineWorker) -> None:
    (blank,) = asked(worker, "blank", "blank").result.result(30)
    picture: Any = Image.open(io.BytesIO(blank.content))
    assert not picture.convert("RGB").getbbox()
    assert set(picture.text) == {"parameters", "warnings", "XML:com.adobe.xmp"}
    assert DigitalSource.BLANK.address in picture.text["XML:com.adobe.xmp"]
    (warning,) = json.loads(picture.text["warnings"])
    assert warning["code"] == "blanked"


@pytest.mark.parametrize(
    ("prompt", "verdicts"), [("a cat", ["allow", "allow"]), ("refuse", ["refuse", "refuse"]), ("broken", ["error"] * 2)]
)
def test_each_check_is_a_span_without_its_texts(
    worker: PipelineWorker, exported: InMemorySpanExporter, prompt: str, verdicts: list[str]
) -> None:
    provider = TracerProvider()
    with provider.get_tracer("test").start_as_current_span("request") as request:
        generation = asked(worker, "one", prompt)
        generation.result.exception(30)
        with contextlib.suppress(RefusedBySafetyCheck, SafetyCheckFailed):
            asyncio.run(worker.safety.check_prompt("one", "", generation.planned))
    spans = [span for span in exported.get_finished_spans() if span.name == "safety_check"]
    attributes = sorted((dict(span.attributes or {}) for span in spans), key=lambda each: str(each["subject"]))
    assert [each["subject"] for each in attributes] == ["output", "prompt"]
    assert [each["verdict"] for each in attributes] == verdicts
    assert {span.context.trace_id for span in spans} == {request.get_span_context().trace_id}
    assert not any("secret" in span.to_json() or "cat" in str(dict(span.attributes or {})) for span in spans)
