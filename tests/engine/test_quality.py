"""Live evidence of several servers on one database, without a pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.caching.speed_settings import FloorSettings, SpeedsSettings
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.config.shadow import ShadowSettings
from cache_dit_serving.engine.quality import Quality
from cache_dit_serving.engine.quality_report import live_figures, quality_of
from cache_dit_serving.engine.shadow_measuring import Measured
from cache_dit_serving.errors import InvalidRequest, StoreUnavailable
from cache_dit_serving.jobs.store.database import JobDatabase
from cache_dit_serving.jobs.store.exchanged import Entry
from cache_dit_serving.pipeline.protocol import Facts, Usable
from tests.support.evidence import IN_A_ROW, sample
from tests.support.planned import model_of
from tests.support.traits import FLUX

SETTINGS = Settings(
    cache=CacheSettings(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.2),
    shadow=ShadowSettings(share=0.1),
    speeds=SpeedsSettings(floors=FloorSettings(ssim=0.95)),
)
MODEL = model_of(FLUX, SETTINGS)
FACTS = Facts(
    name="model",
    weights="saved",
    variant=None,
    dtype="bfloat16",
    device="cuda",
    generator_device="cuda",
    attention_backend="native",
    versions={"diffusers": "1"},
    parallelism=None,
    offload=None,
    quantized=(),
    components=(),
    usable=Usable((), ()),
)
Scene = Callable[[JobDatabase], Awaitable[None]]


def server(database: JobDatabase, facts: Facts = FACTS) -> Quality:
    """A server's evidence, over a worker that has loaded a model and draws nothing."""
    loaded = SimpleNamespace(runner=SimpleNamespace(facts=facts), model=MODEL)
    shadows = SimpleNamespace(compare_with=lambda take: None, took=0.0, waiting=0)
    worker: Any = SimpleNamespace(state="ready", loaded=lambda: loaded, shadows=shadows, model=SimpleNamespace(name=""))
    outputs: Any = None
    made = Quality(SETTINGS, worker, outputs, database)
    made.begin()
    return made


def find(quality: Quality, count: int, ssim: float) -> None:
    """Have shadow runs at `fast` found."""
    assert quality.ledger is not None
    rung = MODEL.speeds.rungs["fast"].settings
    assert rung is not None
    for number in range(count):
        found = sample(number, values={"ssim": ssim}, settings_hash=rung.digest())
        quality._found(Measured(replace(found, environment=quality.ledger.environment), ("20260101-000000-x.png",)))


def play(tmp_path: Path, scene: Scene) -> None:
    async def whole() -> None:
        database = JobDatabase(f"sqlite:///{tmp_path}/jobs.sqlite3", 5.0)
        try:
            await scene(database)
        finally:
            database.access.close()

    asyncio.run(whole())


def test_all_servers_lower_a_speed_and_offer_it_again_and_so_does_one_that_starts(tmp_path: Path) -> None:
    async def scene(database: JobDatabase) -> None:
        assert await database.access.open()
        one, other = server(database), server(database)
        find(one, 5, 0.5)
        await one.exchange()
        await other.exchange()
        assert dict(one.lowered) == dict(other.lowered) == {"fast": "balanced"}
        started = server(database)
        await started.exchange()
        assert dict(started.lowered) == {"fast": "balanced"}
        with pytest.raises(InvalidRequest, match="those that are: fast"):
            await other.restore("high")
        await other.restore("fast")
        await one.exchange()
        assert dict(one.lowered) == dict(other.lowered) == {}
        find(other, 5, 0.5)
        find(one, IN_A_ROW, 0.99)
        await other.exchange()
        await one.exchange()
        await other.exchange()
        assert dict(one.lowered) == dict(other.lowered) == {}
        assert quality_of(one, None).speeds["fast"].status == "holds"

    play(tmp_path, scene)


def test_a_server_that_starts_tells_what_is_and_not_what_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def told() -> list[str]:
        return [record.levelname for record in caplog.records if "speed" in record.message]

    async def scene(database: JobDatabase) -> None:
        assert await database.access.open()
        one = server(database)
        await one.exchange()
        for _ in range(2):
            find(one, 5, 0.5)
            await one.exchange()
            await one.restore("fast")
        assert told() == ["ERROR", "WARNING"] * 2
        caplog.clear()
        await server(database).exchange()
        assert told() == []
        find(one, 5, 0.5)
        await one.exchange()
        caplog.clear()
        await server(database).exchange()
        assert told() == ["ERROR"]

    play(tmp_path, scene)


def test_after_an_upgrade_the_evidence_of_before_is_shown_and_decides_nothing(tmp_path: Path) -> None:
    async def scene(database: JobDatabase) -> None:
        assert await database.access.open()
        before = server(database)
        find(before, 6, 0.5)
        await before.exchange()
        after = server(database, replace(FACTS, versions={"diffusers": "2"}))
        await after.exchange()
        assert dict(after.lowered) == {}
        assert live_figures(after, "fast") is None
        find(after, 2, 0.99)
        await after.exchange()
        answer = quality_of(after, lambda name: f"http://server/{name}")
        assert [(each.outputs, each.current) for each in answer.evidence] == [(2, True), (6, False)]
        versions = {each["versions"]["diffusers"] for each in answer.environments.values()}
        assert versions == {"1", "2"}
        assert answer.evidence[0].newest[0].files == ["http://server/20260101-000000-x.png"]
        figures = live_figures(after, "fast")
        assert figures is not None
        assert (figures.outputs, figures.medians) == (2, {"ssim": 0.99})

    play(tmp_path, scene)


def test_other_weights_begin_their_evidence_anew_and_keep_that_of_their_version(tmp_path: Path) -> None:
    async def scene(database: JobDatabase) -> None:
        assert await database.access.open()
        one = server(database)
        find(one, 5, 0.5)
        await one.exchange()
        assert one.ledger is not None
        of_the_start = one.ledger.environment
        assert one.lowered == {"fast": "balanced"}
        runner: Any = one._worker.loaded().runner
        runner.facts = replace(FACTS, weights_version="a" * 64)
        one.begin()
        assert one.lowered == {}
        await one.exchange()
        assert one.lowered == {}
        assert one.ledger.environment != of_the_start
        assert one.environments[one.ledger.environment]["weights_version"] == "a" * 64
        runner.facts = FACTS
        await one.exchange()
        assert one.lowered == {"fast": "balanced"}

    play(tmp_path, scene)


def test_single_outputs_are_for_an_operator_alone(tmp_path: Path) -> None:
    async def scene(database: JobDatabase) -> None:
        assert await database.access.open()
        quality = server(database)
        find(quality, 3, 0.99)
        await quality.exchange()
        (evidence,) = quality_of(quality, None).evidence
        assert (evidence.outputs, evidence.newest, evidence.worst) == (3, [], [])

    play(tmp_path, scene)


def test_what_another_version_wrote_is_left_out(tmp_path: Path) -> None:
    async def scene(database: JobDatabase) -> None:
        assert await database.access.open()
        quality = server(database)
        assert quality.ledger is not None
        now = quality.ledger.environment
        foreign = [
            Entry("sample", now, '{"at": 1.0, "from a newer version": 2}', "newer"),
            Entry("sample", now, "no JSON", "newer"),
            Entry("restored", now, "{}", "newer"),
            Entry("a kind of its own", now, "{}", "newer"),
        ]
        await database.access.write(lambda store: store.evidence.add(foreign))
        find(quality, 5, 0.5)
        await quality.exchange()
        assert dict(quality.lowered) == {"fast": "balanced"}

    play(tmp_path, scene)


def test_what_was_found_while_the_database_was_away_is_written_later(tmp_path: Path) -> None:
    async def scene(database: JobDatabase) -> None:
        quality = server(database)
        find(quality, 5, 0.5)
        with pytest.raises(StoreUnavailable):
            await quality.exchange()
        assert dict(quality.lowered) == {}
        assert await database.access.open()
        await quality.exchange()
        assert dict(quality.lowered) == {"fast": "balanced"}

    play(tmp_path, scene)
