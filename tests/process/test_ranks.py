"""A server whose model runs on two ranks: over HTTP, and what is left of it when it ends, one way or another."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cache_dit_serving.runners import wire
from cache_dit_serving.runners.wire import JOIN_TOKEN
from tests.support.nodes import SECRET, free_meeting
from tests.support.ranks import open_to_others
from tests.support.server import COMMAND, Server, ready
from tests.support.server import bentoml_serving as serving

TWO = {
    "CACHE_DIT_SERVING__PARALLELISM__ULYSSES_SIZE": "2",
    "OMP_NUM_THREADS": "1",
}


def ranks_of(server: Server) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # one that has just ended
            if "cache_dit_serving.runners" in process.cmdline():
                found.append(process)
    return found


def gone(processes: list[psutil.Process], within_s: float = 15) -> bool:
    _, alive = psutil.wait_procs(processes, within_s)
    return not alive


def by_sigterm(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)


def by_killing_the_supervisor(server: Server) -> None:
    server.process.kill()


def worker_of(server: Server) -> psutil.Process:
    worker = ranks_of(server)[0].parent()
    assert worker is not None
    return worker


@pytest.mark.parametrize("end", [by_sigterm, by_killing_the_supervisor])
def test_it_serves_and_leaves_no_rank_behind(end: Callable[[Server], None], tmp_path: Path) -> None:
    with serving(tmp_path, environ=TWO) as server:
        server.wait_for(lambda server: server.get("/readyz").status_code == 200, 90)
        answer = server.generate(seed=3).json()
        assert answer["cache"]["engaged"]
        assert answer["cache"]["cached_steps"] > 0
        assert server.get("/get_model_info").json()["parallelism"] == {"world_size": 2, "ulysses_size": 2}
        assert len(ranks_of(server)) == 2
        left = ranks_of(server)
        end(server)
        assert gone(left)


def test_two_nodes_serve_and_end_with_the_server(tmp_path: Path) -> None:
    rendezvous, secret = free_meeting(), {JOIN_TOKEN: SECRET}
    nodes = {"PARALLELISM__NODES": "2", "PARALLELISM__RENDEZVOUS": rendezvous}
    environ = TWO | {f"CACHE_DIT_SERVING__{key}": value for key, value in nodes.items()} | secret
    join = [COMMAND, "join", rendezvous]
    with subprocess.Popen(join, env=os.environ | {"OMP_NUM_THREADS": "1"} | secret) as joined:
        try:
            with serving(tmp_path, environ=environ) as server:
                server.wait_for(lambda server: server.get("/readyz").status_code == 200, 90)
                assert server.generate(seed=3).json()["cache"]["engaged"]
                assert server.get("/get_model_info").json()["parallelism"] == {
                    "world_size": 2,
                    "ulysses_size": 2,
                    "nodes": 2,
                }
                left = psutil.Process(joined.pid).children(recursive=True)
                assert left
                by_sigterm(server)
                assert gone(left)
        finally:
            joined.terminate()
    with serving(tmp_path, environ=environ) as server:
        server.wait_for(lambda server: "waiting for 1 of 2 nodes" in server.get("/health").text, 60)
        by_sigterm(server)
        assert server.process.wait(10) == 0


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two ranks; each test leaves it ready."""
    with serving(tmp_path_factory.mktemp("two"), environ=TWO) as server:
        server.wait_for(ready, 90)
        yield server


def group_folder(server: Server) -> Path:
    paths = {str(each.laddr) for each in worker_of(server).net_connections("unix")}
    (socket_file,) = {Path(path) for path in paths if path.endswith("/socket")}
    return socket_file.parent


def test_on_one_machine_nothing_listens_beyond_loopback(two: Server) -> None:
    assert open_to_others(psutil.Process(two.process.pid)) == []
    assert stat.S_IMODE(group_folder(two).stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n" + b"\0" * 64,
        wire.LENGTH.pack(60) + b'{"message": {"kind": "hello", "rank": 0, "pid": 1, "token": ""}, "lengths": []}',
    ],
    ids=["no greeting", "wrong token"],
)
def test_a_stranger_at_the_ranks_ports_changes_nothing(said: bytes, two: Server) -> None:
    before = two.generate(seed=3).json()["images"]
    for rank in ranks_of(two):
        for listening in rank.net_connections("inet"):
            if listening.status == "LISTEN":
                with socket.create_connection(listening.laddr, 10) as stranger:
                    stranger.sendall(said)
    assert two.generate(seed=3).json()["images"] == before
    assert two.get("/readyz").status_code == 200


def test_a_rank_that_is_killed_is_told_until_there_are_ranks_again(two: Server) -> None:
    left = ranks_of(two)
    left[1].kill()
    seen: list[int] = []

    def ready_again(server: Server) -> bool:
        seen.append(server.get("/readyz").status_code)
        return seen[-1] == 200 and 503 in seen

    two.wait_for(ready_again, 90)
    assert set(seen[seen.index(503) : -1]) == {503}
    assert gone(left)
    assert two.generate(seed=3).status_code == 200


def test_a_worker_that_is_killed_takes_its_ranks_along_and_another_one_serves_the_same(two: Server) -> None:
    before = two.generate(seed=3).json()["images"]
    left, folder = ranks_of(two), group_folder(two)
    os.kill(worker_of(two).pid, signal.SIGKILL)
    assert gone(left)
    two.wait_for(lambda server: len(ranks_of(server)) == 2 and ready(server), 90)
    assert not folder.exists()
    assert two.generate(seed=3).json()["images"] == before
