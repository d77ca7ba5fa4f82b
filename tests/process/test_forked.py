"""A forked server, which most tests use, and one of `bentoml serve` answer the same, with two workers each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.draining import drains
from tests.support.forked import RUN, RUN_VARIABLE
from tests.support.jobs import ended, submitted
from tests.support.processes import gone
from tests.support.renewed import renewed
from tests.support.server import ROOT, Server, bentoml_serving, options, ready_workers, serving, supervised

PATHS = ("/openapi.json", "/capabilities", "/get_model_info", "/v1/models", "/loras", "/docs", "/favicon.ico")
METHODS = ("GET", "POST", "DELETE", "PUT", "OPTIONS")


WORKERS = 2
TWO = options(SERVER__WORKERS=WORKERS, SERVER__WARM_UP=False)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], tuple[Server, Server]]]:
    """The two servers, all of their workers ready."""

    def all_ready(server: Server) -> bool:
        return ready_workers(server) == WORKERS

    with (
        renewed(lambda: serving(tmp_path_factory.mktemp("forked"), environ=TWO), all_ready) as one,
        renewed(lambda: bentoml_serving(tmp_path_factory.mktemp("started"), environ=TWO), all_ready) as other,
    ):
        yield lambda: (one(), other())


@pytest.fixture
def both(pairs: Callable[[], tuple[Server, Server]]) -> tuple[Server, Server]:
    return pairs()


def test_pictures_are_the_same_to_the_bit(both: tuple[Server, Server]) -> None:
    for fields in ({"seed": 5}, {"seed": 6, "speed": "fast", "num_images": 2}, {"seed": 7, "speed": "lossless"}):
        one, other = (server.generate(**fields).json() for server in both)
        assert one["images"] == other["images"]
        assert one["cache"] == other["cache"]


def test_routes_answer_the_same(both: tuple[Server, Server]) -> None:
    routes = list(both[0].get("/openapi.json").json()["paths"])
    assert "/generate" in routes
    for path in PATHS:
        one, other = (server.get(path) for server in both)
        assert (one.status_code, steady(one.text)) == (other.status_code, steady(other.text)), path
    for path in (*routes, "/nothing"):
        for method in METHODS:
            one, other = (server.session.request(method, server.url + path, json={"seed": "x"}) for server in both)
            assert one.status_code == other.status_code, (method, path)
            assert sorted(one.headers) == sorted(other.headers), (method, path)


def steady(text: str) -> str:
    """An answer without times, addresses and what differs by the folder."""
    return re.sub(r"127\.0\.0\.1:\d+|\d+\.\d+|\d{5,}", "#", text)


def test_metrics_have_the_same_series_from_the_start(tmp_path: Path, both: tuple[Server, Server]) -> None:
    names = [set(re.findall(r"^# TYPE (\S+)", server.get("/metrics").text, re.M)) for server in both]
    assert names[0] == names[1]
    assert "cache_dit_serving_generations" in " ".join(names[0])


def test_a_job_is_done_and_its_output_served(both: tuple[Server, Server]) -> None:
    pictures = []
    for server in both:
        job = submitted(server, seed=8)
        assert ended(server, job)["state"] == "succeeded"
        pictures.append(server.get(f"{job}/outputs/0").content)
    assert pictures[0] == pictures[1]


FORKS = """
import sys
from pathlib import Path
from tests.support.forked import environment, warm_process
log = Path(sys.argv[1])
environ = environment() | {"CACHEDIT_JOIN_TOKEN": "x"}
joins = warm_process().fork(command=["join", "127.0.0.2:1"], environ=environ, cwd=log.parent, log=log)
print(joins.pid, flush=True)
sys.stdin.read()
"""


def test_another_test_process_shares_the_warm_process_which_ends_what_it_forked_for_it(
    both: tuple[Server, Server], tmp_path: Path
) -> None:
    environ = os.environ | {RUN_VARIABLE: RUN}
    with subprocess.Popen(
        [sys.executable, "-c", FORKS, tmp_path / "log"],
        cwd=ROOT,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        joins = psutil.Process(int(other.stdout.readline()))
        assert joins.ppid() == psutil.Process(both[0].process.pid).ppid()
        other.kill()
        assert gone([joins])


def test_sigterm_finishes_what_runs_and_answers_the_rest_with_503(both: tuple[Server, Server]) -> None:
    assert [drains(server, WORKERS) for server in both] == [0, 0]


def test_a_forked_supervisor_of_bentomls_drains_its_workers_as_the_started_one(tmp_path: Path) -> None:
    with supervised(tmp_path, environ=TWO) as server:
        server.wait_for(lambda server: ready_workers(server) == WORKERS)
        named = {"supervisor", "worker-1", "worker-2"}
        assert {name for name in named if f"INFO {name} " in server.log()} == named
        assert drains(server, WORKERS) == 0
