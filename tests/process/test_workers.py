"""Workers of one server: they share its jobs, and SIGTERM drains each of them.

Servers are forked; `tests/process/test_forked.py` drains two workers, of such a server and of `bentoml serve`, and
`tests/process/test_lifecycle.py` kills a worker of BentoML's supervisor.
"""

from __future__ import annotations

import base64
import functools
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psutil
import pytest
import requests

from tests.support.draining import drains
from tests.support.jobs import LONG, PROMPT, ended, states, submitted
from tests.support.renewed import renewed
from tests.support.server import Server, options, ready_workers, serving
from tests.support.waiting import wait_until

WITHIN_S = 180
SECOND = LONG | {"num_images": 1}
"""Fields of a request that is drawn to its end, and takes more than a second."""


@pytest.fixture(scope="module")
def of_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Server]]:
    """The server with so many workers, all of them ready."""
    with ExitStack() as stack:

        @functools.cache
        def server_of(workers: int) -> Callable[[], Server]:
            environ = options(SERVER__WORKERS=workers, SERVER__WARM_UP=False, JOBS__LEASE_S=10)
            begin = renewed(
                lambda: serving(tmp_path_factory.mktemp("of"), environ=environ),
                lambda server: ready_workers(server) == workers,
                WITHIN_S,
            )
            return stack.enter_context(begin)

        yield lambda workers: server_of(workers)()


def test_jobs_are_shared(of_workers: Callable[[int], Server]) -> None:
    server = of_workers(2)
    expected = server.generate(prompt=PROMPT, seed=5).json()["images"]
    jobs = [submitted(server, seed=5, speed="lossless", num_inference_steps=25) for _ in range(4)]
    jobs += [submitted(server, seed=5) for _ in range(2)]
    cancelled = submitted(server, **LONG)
    assert requests.delete(server.url + cancelled, timeout=WITHIN_S).json()["state"] == "cancelled"
    for job in jobs:
        with requests.get(f"{server.url}{job}/events", stream=True, timeout=WITHIN_S) as events:  # of any worker
            told = [line for line in events.iter_lines(decode_unicode=True) if line.startswith("data:")]
        assert '"state":"succeeded"' in told[-1]
        for _ in range(4):  # each on a connection of its own, to a worker of its own choice
            answer = requests.get(server.url + job, timeout=60).json()
            assert states(answer) == ["queued", "running", "succeeded"]
    drawn = requests.get(f"{server.url}{jobs[-1]}/outputs/0", timeout=60).content
    assert base64.b64encode(drawn).decode() == expected[0]


def test_steps_are_told_by_each_worker_as_they_are_done(of_workers: Callable[[int], Server]) -> None:
    server = of_workers(2)
    job = submitted(server, **SECOND)

    def steps_told(_: int) -> int:
        with requests.get(f"{server.url}{job}/events", stream=True, timeout=WITHIN_S) as events:
            return sum(line == "event: progress" for line in events.iter_lines(decode_unicode=True))

    with ThreadPoolExecutor(8) as threads:  # on connections to workers of their own choice
        told = list(threads.map(steps_told, range(8)))
    assert all(steps >= 20 for steps in told), "once a second"


def test_a_worker_that_is_killed_leaves_its_jobs_to_the_other(of_workers: Callable[[int], Server]) -> None:
    server = of_workers(2)
    jobs = [submitted(server, **LONG) for _ in range(2)]  # one for each worker
    for job in jobs:
        server.wait_for(lambda server, job=job: server.get(job).json()["step"] > 10, WITHIN_S)  # type: ignore[misc]
    psutil.Process(server.process.pid).children()[0].kill()
    server.session.close()  # it may hold a connection to that one

    def steps() -> dict[str, int]:
        return {job: server.get(job).json()["step"] for job in jobs}

    server.wait_for(lambda server: "was ended by SIGKILL" in server.log())
    before = steps()
    (left,) = wait_until(lambda: [job for job, step in steps().items() if step > before[job]], WITHIN_S)
    (lost,) = set(jobs) - {left}
    assert server.session.delete(server.url + left).json()["state"] == "cancelled"
    server.wait_for(lambda server: states(server.get(lost).json()) == ["queued", "running"] * 2, WITHIN_S)
    server.wait_for(lambda server: server.get(lost).json()["step"] > before[lost], WITHIN_S)
    server.session.delete(server.url + lost)
    assert states(ended(server, lost, WITHIN_S)) == [*["queued", "running"] * 2, "cancelled"]


def test_sigterm_finishes_what_runs_and_answers_the_rest_with_503(of_workers: Callable[[int], Server]) -> None:
    assert drains(of_workers(1), 1) == -signal.SIGTERM
