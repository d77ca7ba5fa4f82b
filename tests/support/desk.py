"""The desk of jobs in this process, over a real worker and a SQLite file, without a transport."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.engine.caller import SCOPES, Caller
from cache_dit_serving.engine.engine import Engine
from cache_dit_serving.engine.intake import Intake
from cache_dit_serving.engine.job_desk import JobDesk
from cache_dit_serving.engine.models import Models
from cache_dit_serving.errors import StoreUnavailable
from cache_dit_serving.jobs.model_loading import State
from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.jobs.store.exchanged import Page
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.pipeline.protocol import Loaded
from cache_dit_serving.schemas.request import JobRequest
from tests.support.jobs import PROMPT
from tests.support.server import options

WITHIN_S = 180
ANN, BOB = Caller("ann", ("generate",)), Caller("bob", ("generate",))
ADMIN = Caller("root", SCOPES)


def intake(caller: Caller = ANN, /, **fields: Any) -> Intake:
    request = JobRequest.model_validate({"prompt": PROMPT, "seed": 1, "num_inference_steps": 8} | fields)
    return Intake(request, "request", lenient=False, warnings=(), uploads=(), base_url="http://host", caller=caller)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    end = time.monotonic() + WITHIN_S
    while not await condition():
        assert time.monotonic() < end, "waited too long"
        await asyncio.sleep(0.01)


def settings_of(root: Path) -> Settings:
    return load_settings(options(OUTPUTS__ROOT=str(root), JOBS__LEASE_S=5, LIMITS__MAX_PRIORITY=3))


@asynccontextmanager
async def open_desk(worker: PipelineWorker, root: Path) -> AsyncIterator[JobDesk]:
    """The desk of a worker that is started, once that is ready; both end with it."""
    async with _open(worker, root, "ready") as desk:
        try:
            yield desk
        finally:
            worker.drain()
            worker.thread.give_up()
            await asyncio.to_thread(worker.join, WITHIN_S)


@asynccontextmanager
async def open_loading_desk(root: Path) -> AsyncIterator[JobDesk]:
    """The desk of a server that loads for ever: it answers for all jobs, and takes none over."""

    def load(stage: object) -> Loaded:
        raise AssertionError("the worker is not started")

    async with _open(PipelineWorker.alone(load, max_queue=1), root, "loading") as desk:
        yield desk


@asynccontextmanager
async def _open(worker: PipelineWorker, root: Path, state: State) -> AsyncIterator[JobDesk]:
    engine = Engine(settings_of(root), worker)
    desk = JobDesk(Models([engine]))

    async def is_open() -> bool:
        try:
            await desk.page(Page(1), ADMIN)
        except StoreUnavailable:
            return False
        return worker.state == state

    desk.start()
    try:
        await until(is_open)
        yield desk
    finally:
        await desk.close()
        engine.decoding.close()


async def ended(desk: JobDesk, name: str) -> JobRecord:
    async def has_ended() -> bool:
        return (await desk.find(name, ADMIN)).state.final

    await until(has_ended)
    return await desk.find(name, ADMIN)


def run(worker: PipelineWorker, root: Path, test: Callable[[JobDesk], Awaitable[None]]) -> None:
    async def opened() -> None:
        async with open_desk(worker, root) as desk:
            await test(desk)

    asyncio.run(opened())
