"""Jobs of 8 clients while everything breaks that may: nothing promised is lost, and no picture is another one."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from tests.support.postgres import INSTALLED, needs_postgres, postgres
from tests.support.server import UNWARMED, Server, bentoml_serving, serving
from tests.support.storm import SEEDS, STEPS, Storm, small_disk

CLIENTS = 8
DATABASE = "postgresql" if INSTALLED else "sqlite"
LEASE_S = 5.0
"""The least that there is."""
REASONS = {"internal_error", "interrupted"}
"""Of those that fail: their outputs could not be written, or they began three times and were killed each time."""


@pytest.mark.parametrize(
    ("database", "jobs", "begin"),
    [
        pytest.param(DATABASE, 80, serving, id=DATABASE),
        pytest.param("sqlite", 200, bentoml_serving, marks=pytest.mark.apart, id="sqlite, bentoml serve"),
        pytest.param(
            "postgresql",
            200,
            bentoml_serving,
            marks=[pytest.mark.apart, needs_postgres],
            id="postgresql, bentoml serve",
        ),
    ],
)
def test_every_job_ends_once_and_as_if_nothing_had_happened(
    database: str,
    jobs: int,
    begin: Callable[..., AbstractContextManager[Server]],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    with ExitStack() as stack:
        outputs = stack.enter_context(small_disk(tmp_path / "disk", "64m"))
        environ = {
            **UNWARMED,
            "CACHE_DIT_SERVING__OUTPUTS__ROOT": str(outputs),
            "CACHE_DIT_SERVING__SERVER__WORKERS": "2",
            "CACHE_DIT_SERVING__JOBS__LEASE_S": str(LEASE_S),
        }
        storm = Storm(tmp_path, outputs, environ, jobs, CLIENTS, random.Random(0), begin)
        if database == "postgresql":
            cluster = stack.enter_context(postgres())
            url = environ["CACHE_DIT_SERVING__JOBS__DATABASE"] = cluster.new_database()
            faults = [
                lambda: storm.cut_postgres(cluster, 1),
                lambda: storm.cut_postgres(cluster, LEASE_S + 3),
                lambda: storm.lock_rows(url, LEASE_S + 3),
            ]
        else:
            url = f"sqlite:///{outputs}/jobs.sqlite3"
            faults = [lambda: storm.lock_sqlite(2), lambda: storm.lock_sqlite(2 * LEASE_S)]
        stack.callback(storm.close)
        storm.start()
        storm.bury(url)
        storm.blow(
            [storm.kill_a_worker, faults[0], storm.fill_the_disk, storm.kill_all, *faults[1:], storm.kill_a_worker]
        )
        answers = storm.settle()
        record_property("counts", ", ".join(f"{n} {what}" for what, n in storm.counts.items()))
        assert storm.errors == []
        assert "ran here although another server had it" not in storm.logs()
        assert storm.counts["succeeded"] > jobs / 2
        assert storm.listed() == set(answers)
        assert {answer["error"]["code"] for answer in answers.values() if answer["state"] == "failed"} <= REASONS

        undisturbed = {
            (seed, steps): storm.server.generate(seed=seed, num_inference_steps=steps, output_format="url").json()
            for seed in SEEDS
            for steps in STEPS
        }
        expected = {
            key: storm.picture(f"/outputs/{answer['images'][0].split('/outputs/')[1]}")
            for key, answer in undisturbed.items()
        }
        for job in storm.promised.values():
            if job.id in answers and answers[job.id]["state"] == "succeeded":
                (output,) = answers[job.id]["outputs"]
                assert storm.picture(output) == expected[job.seed, job.steps], job
        written = {file.name for file in outputs.rglob("*.png")}
        known = {
            url.rsplit("/", 1)[-1]
            for answer in (*undisturbed.values(), *(each["result"] for each in answers.values() if each.get("result")))
            for url in answer["images"]
        }
        assert written == known
