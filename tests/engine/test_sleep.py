"""The engine's answers about a model that sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from cache_dit_serving.engine.caller import Caller
from cache_dit_serving.engine.engine import Engine
from cache_dit_serving.engine.intake import Intake
from cache_dit_serving.errors import InUse
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.pipeline import sleeping
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.in_process import EMBEDDED
from tests.support.waiting import wait_until


@pytest.fixture
def engine(worker: PipelineWorker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The CPU stands in for the GPU."""
    monkeypatch.setattr(sleeping, "why_not_in_host_memory", lambda device: None)
    wait_until(lambda: worker.state == "ready")
    yield Engine(EMBEDDED, worker)
    worker.wake().result(30)


def test_health_says_asleep_and_the_answer_of_the_next_request_what_waking_took(engine: Engine) -> None:
    async def asked() -> None:
        request = GenerateRequest(prompt="a cat", seed=1, num_inference_steps=4)
        intake = Intake(request, "one", False, (), (), "http://host", Caller("", ("generate",)))
        before = await engine.generate(intake)
        assert before.timings.wake is None
        assert engine.health().status == "ready"
        slept = await engine.sleep("host")
        assert (slept.status, slept.level, slept.workers) == ("asleep", "host", 1)
        assert slept.freed_bytes > 0
        health = engine.health()
        assert (health.status, health.reason) == (
            "asleep",
            "the model's weights are in host memory; the next request wakes it",
        )
        assert (await engine.flush_cache()).freed_bytes == 0
        after = await engine.generate(intake)
        assert after.images == before.images
        assert after.timings.wake is not None
        assert after.timings.queue < after.timings.wake
        assert (await engine.wake()).seconds == 0
        await engine.sleep("host")
        assert (await engine.wake()).seconds > 0

    asyncio.run(asked())


def test_a_model_that_requests_wait_for_does_not_sleep(engine: Engine) -> None:
    worker = engine.worker
    request = GenerateRequest(prompt="a cat", seed=1, num_inference_steps=60)
    running, waiting = (Generation(name, plan(resolve(request, worker.loaded().model))) for name in ("a", "b"))
    worker.submit(running)
    worker.submit(waiting)
    with pytest.raises(InUse, match="requests wait for the model, so it stays awake"):
        asyncio.run(engine.sleep("host"))
    assert waiting.result.result(30)
