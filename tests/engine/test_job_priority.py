"""The priority of a job that waits, changed where it waits, at another server of its database, and over a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cache_dit_serving.engine.job_desk import JobDesk
from cache_dit_serving.errors import InvalidRequest, JobNotQueued, NotFound
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.pipeline.protocol import Loaded
from tests.support.desk import ADMIN, ANN, BOB, ended, intake, open_desk, open_loading_desk, run, until
from tests.support.jobs import LONG


async def one_that_runs_and_two_that_wait(desk: JobDesk) -> tuple[str, str, str]:
    runs, first, second = [(await desk.admit(intake(**fields), None, "")).id for fields in (LONG, {}, {})]

    async def is_running() -> bool:
        return (await desk.find(runs, ANN)).step > 0

    await until(is_running)
    return runs, first, second


def test_a_job_that_waits_moves_to_the_place_of_another_priority_until_it_runs(
    worker: PipelineWorker, tmp_path: Path
) -> None:
    async def test(desk: JobDesk) -> None:
        runs, first, second = await one_that_runs_and_two_that_wait(desk)
        changed = await desk.set_priority(second, 3, ANN)
        assert (changed.priority, changed.position) == (3, 1)
        assert (await desk.find(first, ANN)).position == 2
        with pytest.raises(NotFound):
            await desk.set_priority(second, 0, BOB)
        with pytest.raises(InvalidRequest, match="more than this server's 3"):
            await desk.set_priority(second, 4, ANN)
        with pytest.raises(JobNotQueued, match="waits no longer"):
            await desk.set_priority(runs, 3, ADMIN)
        assert [(await desk.find(job, ANN)).priority for job in (runs, second)] == [0, 3]
        await desk.cancel(runs, ANN)
        began = [(await ended(desk, job)).history[1][1] for job in (second, first)]
        assert began == sorted(began)
        with pytest.raises(JobNotQueued):
            await desk.set_priority(second, 0, ANN)
        assert (await desk.find(second, ANN)).priority == 3

    run(worker, tmp_path, test)


def test_a_changed_priority_reaches_the_server_that_has_the_job_and_the_next_one(
    loaded: Loaded, worker: PipelineWorker, tmp_path: Path
) -> None:
    async def change_elsewhere(desk: JobDesk) -> tuple[str, str, str]:
        runs, first, second = await one_that_runs_and_two_that_wait(desk)

        async def is_next() -> bool:
            return (await desk.find(second, ANN)).position == 1

        async with open_loading_desk(tmp_path) as other:
            assert (await other.set_priority(second, 2, ADMIN)).priority == 2
            await until(is_next)
        return runs, first, second

    async def restart() -> None:
        async with open_desk(worker, tmp_path) as desk:
            runs, first, second = await change_elsewhere(desk)
        following = PipelineWorker.alone(lambda progress: loaded, max_queue=8)
        following.start()
        async with open_desk(following, tmp_path) as desk:
            await desk.cancel(runs, ANN)
            records = [await ended(desk, job) for job in (second, first)]
            began = [record.history[-2][1] for record in records]
            assert began == sorted(began)
            assert [record.priority for record in records] == [2, 0]

    asyncio.run(restart())
