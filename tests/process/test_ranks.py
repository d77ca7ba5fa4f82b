"""A server whose model runs on two ranks: over HTTP, and what is left of it when it ends, one way or another."""

from __future__ import annotations

import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cache_dit_serving.ranks import wire
from cache_dit_serving.ranks.agent import ranks_of
from cache_dit_serving.ranks.wire import JOIN_TOKEN
from tests.support.nodes import SECRET, free_meeting, node
from tests.support.processes import gone
from tests.support.ranks import REUSING, open_to_others
from tests.support.server import UNWARMED, Server, ready, serving, supervised

TWO = UNWARMED | {
    "CACHE_DIT_SERVING__PARALLELISM__ULYSSES_SIZE": "2",
    "OMP_NUM_THREADS": "1",
}
RENDEZVOUS = free_meeting()
SECRETS = {JOIN_TOKEN: SECRET}
NODES = (
    TWO
    | SECRETS
    | {
        "CACHE_DIT_SERVING__PARALLELISM__NODES": "2",
        "CACHE_DIT_SERVING__PARALLELISM__RENDEZVOUS": RENDEZVOUS,
    }
)


def ranks(server: Server) -> list[psutil.Process]:
    return ranks_of(server.process.pid)


def picture(server: Server) -> list[str]:
    images: list[str] = server.generate(seed=3, **REUSING).json()["images"]
    return images


def worker_of(server: Server) -> psutil.Process:
    forking = ranks(server)[0].parent()
    worker = forking and forking.parent()
    assert worker is not None
    return worker


def below(pid: int) -> list[psutil.Process]:
    """All processes that one has started: its ranks, and the one that forks them."""
    found = psutil.Process(pid).children(recursive=True)
    assert any(process in found for process in ranks_of(pid))
    return found


def test_two_nodes_serve_and_end_with_a_server_that_is_killed(tmp_path: Path) -> None:
    with node(RENDEZVOUS, tmp_path / "join.log") as joined, serving(tmp_path, environ=NODES) as server:
        server.wait_for(ready)
        assert server.generate(seed=3).json()["cache"]["engaged"]
        assert server.get("/get_model_info").json()["parallelism"] == {
            "world_size": 2,
            "ulysses_size": 2,
            "nodes": 2,
        }
        ranks_there, processes_here = ranks_of(joined.pid), below(server.process.pid)
        assert len(ranks_there) == len(ranks(server)) == 1
        server.process.kill()
        assert gone([*ranks_there, *processes_here])


def test_a_server_that_waits_for_a_node_ends_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, environ=NODES) as server:
        server.wait_for(lambda server: "waiting for 1 of 2 nodes" in server.get("/health").text)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two ranks; each test leaves it ready. It leaves no process behind."""
    with supervised(tmp_path_factory.mktemp("two"), environ=TWO) as server:
        server.wait_for(ready)
        yield server
        left = below(server.process.pid)
    assert gone(left)
    assert "the ranks have ended" not in server.log().rpartition("draining")[2], "they ended unasked"
    assert "leaked" not in server.log()


def test_two_ranks_serve(two: Server) -> None:
    answer = two.generate(seed=3).json()
    assert answer["cache"]["engaged"]
    assert answer["cache"]["cached_steps"] > 0
    assert two.get("/get_model_info").json()["parallelism"] == {"world_size": 2, "ulysses_size": 2}
    assert len(ranks(two)) == 2


def test_the_process_that_forks_the_ranks_runs_no_second_thread(two: Server) -> None:
    forking = ranks(two)[0].parent()
    assert forking is not None
    assert forking.num_threads() == 1


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
    before = picture(two)
    for rank in ranks(two):
        for listening in rank.net_connections("inet"):
            if listening.status == "LISTEN":
                with socket.create_connection(listening.laddr, 60) as stranger:
                    stranger.sendall(said)
    assert picture(two) == before
    assert two.get("/readyz").status_code == 200


def test_a_rank_that_is_killed_is_told_until_there_are_ranks_again(two: Server) -> None:
    left = ranks(two)
    left[1].kill()
    seen: list[int] = []

    def ready_again(server: Server) -> bool:
        seen.append(server.get("/readyz").status_code)
        return seen[-1] == 200 and 503 in seen

    two.wait_for(ready_again)
    assert set(seen[seen.index(503) : -1]) == {503}
    assert gone(left)
    assert picture(two)


def test_a_worker_that_is_killed_takes_its_ranks_along_and_another_one_serves_the_same(two: Server) -> None:
    before = picture(two)
    worker, folder = worker_of(two), group_folder(two)
    left = below(worker.pid)
    worker.kill()
    assert gone(left)
    two.wait_for(lambda server: ready(server) and len(ranks(server)) == 2)
    assert not folder.exists()
    assert picture(two) == before
