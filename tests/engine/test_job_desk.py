"""The desk of jobs over the real embedded pipeline and a SQLite file, without a transport."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from cache_dit_serving.engine import live_jobs
from cache_dit_serving.engine.idempotency import admit_once
from cache_dit_serving.engine.job_answers import JobAnswers
from cache_dit_serving.engine.job_desk import JobDesk
from cache_dit_serving.engine.job_events import JobEvents
from cache_dit_serving.errors import InvalidRequest, KeyReused, NotFound
from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.jobs.store.exchanged import Page
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.schemas.jobs import EventKind, JobState
from tests.support.desk import ADMIN, ANN, BOB, WITHIN_S, ended, intake, open_desk, open_loading_desk, run, until
from tests.support.jobs import LONG


def test_a_job_is_its_callers_and_an_admins_until_it_is_forgotten_with_its_files(
    worker: PipelineWorker, tmp_path: Path
) -> None:
    async def test(desk: JobDesk) -> None:
        admitted = await desk.admit(intake(), None, "digest", "video_")
        assert admitted.id.startswith("video_")
        record = await ended(desk, admitted.id)
        assert [state for state, _ in record.history] == [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]
        assert (record.step, record.caller) == (record.steps, "ann")
        assert await desk.find(record.id, ANN) == record
        assert [each.id for each in await desk.page(Page(5), ANN)] == [record.id]
        assert await desk.page(Page(5), BOB) == []
        with pytest.raises(NotFound):
            await desk.find(record.id, BOB)
        with pytest.raises(InvalidRequest, match="begin without it"):
            await desk.page(Page(5, after=record.id), BOB)
        with pytest.raises(NotFound, match=r"1 output\(s\), from 0"):
            await desk.output(record.id, "1", ANN)
        (file,) = record.files
        assert (await desk.output(record.id, "0", ANN)).place == tmp_path / file
        assert (tmp_path / file).is_file()
        await desk.forget(record)
        assert not (tmp_path / file).exists()
        with pytest.raises(NotFound):
            await desk.find(record.id, ANN)

    run(worker, tmp_path, test)


def test_a_job_that_waits_and_one_that_runs_are_cancelled_and_kept_until_they_are_forgotten(
    worker: PipelineWorker, tmp_path: Path
) -> None:
    async def test(desk: JobDesk) -> None:
        runs, waits = [await desk.admit(intake(**LONG), None, "") for _ in range(2)]

        async def is_running() -> bool:
            return (await desk.find(runs.id, ANN)).step > 0

        await until(is_running)
        assert (await desk.find(waits.id, ANN)).position == 1
        for job, history in ((waits, ["queued", "cancelled"]), (runs, ["queued", "running", "cancelled"])):
            assert desk.live(job.id) is not None
            cancelled = await desk.cancel(job.id, ANN)
            assert desk.live(job.id) is None
            assert [state.value for state, _ in cancelled.history] == history
            assert await desk.find(job.id, ANN) == cancelled
            assert await desk.cancel(job.id, ANN) == cancelled  # an end is final
            await desk.forget(cancelled)

    run(worker, tmp_path, test)


def test_a_job_without_a_live_owner_is_cancelled_with_its_files_by_whoever_finds_it(
    worker: PipelineWorker, tmp_path: Path
) -> None:
    async def leave_one() -> str:
        async with open_desk(worker, tmp_path) as desk:
            await desk.admit(intake(**LONG), None, "")
            return (await desk.admit(intake(), None, "")).id

    async def cancel(name: str) -> JobRecord:
        async with open_loading_desk(tmp_path) as desk:
            assert (await desk.cancel(name, ANN)).state is JobState.CANCELLED
            return await desk.find(name, ANN)

    name = asyncio.run(leave_one())
    written = tmp_path / "jobs" / name / "1.png"
    written.parent.mkdir(parents=True, exist_ok=True)
    written.touch()  # as by a server that was killed before it wrote down that the job has ended
    assert [state.value for state, _ in asyncio.run(cancel(name)).history] == ["queued", "cancelled"]
    assert not written.exists()


def test_one_key_is_one_job_of_a_caller_also_when_it_comes_twice_at_once(
    worker: PipelineWorker, tmp_path: Path
) -> None:
    async def test(desk: JobDesk) -> None:
        both = await asyncio.gather(*(admit_once(desk, intake(), "key") for _ in range(2)))
        assert sorted(known for _, known in both) == [False, True]
        assert len({record.id for record, _ in both}) == 1
        other, known = await admit_once(desk, intake(BOB), "key")
        assert not known
        assert other.id != both[0][0].id
        with pytest.raises(KeyReused):
            await admit_once(desk, intake(seed=2), "key")
        assert len(await desk.page(Page(5), ADMIN)) == 2

    run(worker, tmp_path, test)


def test_steps_wake_the_event_loop_only_for_followers(
    worker: PipelineWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[object] = []

    def soon(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
        woken.append(what)
        loop.call_soon_threadsafe(what)

    monkeypatch.setattr(live_jobs, "_soon", soon)

    async def test(desk: JobDesk) -> None:
        alone = await desk.admit(intake(), None, "")
        assert (await ended(desk, alone.id)).step == 8
        assert not woken
        followed = await desk.admit(intake(**LONG), None, "")
        for _ in range(3):
            job = desk.live(followed.id)
            assert job is not None
            await asyncio.wait_for(job.next_change().wait(), WITHIN_S)
        assert len(woken) >= 3
        await desk.cancel(followed.id, ANN)

    run(worker, tmp_path, test)


def test_a_follower_gets_each_event_once_and_then_the_end(worker: PipelineWorker, tmp_path: Path) -> None:
    async def test(desk: JobDesk) -> None:
        engine = desk._engine
        events = JobEvents(engine, desk, JobAnswers(engine.settings, engine.outputs))
        job = await desk.admit(intake(), None, "")
        none = events.previews(job.id, None, lenient=False)
        told = [event async for looks in events.follow(job, 0, ANN, none) for event in looks]
        kinds = [event.kind.value for event in told if event.kind not in (EventKind.POSITION, EventKind.PROGRESS)]
        assert kinds == ["state", "state", "result", "state"]
        numbers = [event.number for event in told if event.number is not None]
        assert numbers == sorted(set(numbers))
        again = [event async for looks in events.follow(job, numbers[-2], ANN, none) for event in looks]
        assert again == told[-1:]
        await desk.forget(await desk.find(job.id, ANN))
        assert [event async for looks in events.follow(job, 0, ANN, none) for event in looks] == []

    run(worker, tmp_path, test)


def test_a_job_of_no_file_is_refused(worker: PipelineWorker, tmp_path: Path) -> None:
    async def test(desk: JobDesk) -> None:
        with pytest.raises(InvalidRequest, match="outputs of a job are files"):
            await desk.admit(intake(output_format="base64"), None, "")
        assert await desk.page(Page(5), ADMIN) == []

    run(worker, tmp_path, test)
