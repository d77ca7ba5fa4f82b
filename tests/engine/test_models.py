"""Engines by the names of their models, and requests that wait for a first load."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from cache_dit_serving.engine.engine import Engine
from cache_dit_serving.engine.models import Models
from cache_dit_serving.engine.resources import Resources
from cache_dit_serving.errors import DeadlineExceeded, NotFound, NotReady, QueueFull
from cache_dit_serving.jobs.pipeline_thread import PipelineThread
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.pipeline.protocol import Loaded
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.in_process import EMBEDDED
from tests.support.waiting import wait_until


@dataclass
class Held:
    """Two models, of which the second one's load waits."""

    models: Models
    go_on: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def held(loaded: Loaded) -> Iterator[Held]:
    go_on = threading.Event()

    def later(progress: Callable[[str], None]) -> Loaded:
        progress("reading")
        assert go_on.wait(60)
        return loaded

    thread = PipelineThread(max_queue=2)
    settings = EMBEDDED.model_copy(update={"limits": EMBEDDED.limits.model_copy(update={"max_queue": 2})})
    resources = Resources.of(settings)
    engines = [
        Engine(
            settings,
            PipelineWorker(thread, thread.add(load, name=name, on_request=True, resident="on-demand")),
            aliases=aliases,
            resources=resources,
        )
        for name, load, aliases in (("first", lambda progress: loaded, ("one",)), ("second", later, ()))
    ]
    thread.start()
    wait_until(lambda: thread.state == "ready")
    yield Held(Models(engines), go_on)
    go_on.set()
    thread.drain()
    assert thread.join(60)
    resources.decoding.close()


def test_names_and_aliases_choose_and_others_are_refused_with_the_names(held: Held) -> None:
    models = held.models
    assert models.names == ("first", "one", "second")
    assert models.find(None) is models.find("one") is models.default
    assert models.find("second") is models.engines[1]
    with pytest.raises(NotFound, match="the model 'embedded' is not served here; there is first, one, second"):
        models.find("embedded")


def test_a_request_waits_for_the_first_load_and_health_tells_its_stage(held: Held) -> None:
    models = held.models

    async def asked() -> None:
        waiting = asyncio.ensure_future(models.loaded("second"))
        loading = models.engines[1].worker.model.loading
        await asyncio.to_thread(wait_until, lambda: loading.reason == "reading")
        told = models.health()
        assert (told.status, [each.status for each in told.models or ()]) == ("ready", ["ready", "loading"])
        held.go_on.set()
        assert await waiting is models.engines[1]
        assert await models.loaded("second") is models.engines[1]

    asyncio.run(asked())


def test_as_many_wait_for_a_load_as_for_the_pipeline_and_each_no_longer_than_its_deadline(held: Held) -> None:
    models = held.models

    async def asked() -> None:
        request = GenerateRequest(prompt="a", model="second", deadline_s=0.2)
        late = [asyncio.ensure_future(models.for_request(request)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="2 requests wait for a model to be loaded"):
            await models.loaded("second")
        for each in late:
            with pytest.raises(DeadlineExceeded, match=r"not loaded within its deadline_s of 0\.2 s; its load goes on"):
                await each
        held.go_on.set()
        engine, rest = await models.for_request(request.model_copy(update={"deadline_s": 60.0}))
        assert engine is models.engines[1]
        assert rest.deadline_s is not None
        assert 0 < rest.deadline_s < 60

    asyncio.run(asked())


def test_one_that_leaves_does_not_end_the_load_that_others_wait_for(held: Held) -> None:
    models = held.models

    async def asked() -> None:
        leaves, stays = (asyncio.ensure_future(models.loaded("second")) for _ in range(2))
        await asyncio.sleep(0.05)
        leaves.cancel()
        held.go_on.set()
        assert await stays is models.engines[1]

    asyncio.run(asked())


def test_a_drain_refuses_who_waits_for_a_load(held: Held) -> None:
    models = held.models

    async def asked() -> None:
        waiting = asyncio.ensure_future(models.loaded("second"))
        await asyncio.sleep(0.1)
        models.thread.drain()
        held.go_on.set()
        with pytest.raises(NotReady) as refused:
            await waiting
        assert refused.value.code == "draining"

    asyncio.run(asked())
