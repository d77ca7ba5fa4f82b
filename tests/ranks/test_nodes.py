"""A model on two machines: here two addresses of one, each with an agent of its own."""

from __future__ import annotations

import signal
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pydantic import ValidationError

from cache_dit_serving.cli import join
from cache_dit_serving.config.acceleration import ParallelismSettings
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.errors import LoadError
from cache_dit_serving.ranks import versions, wire
from cache_dit_serving.ranks.agent import ranks_of
from cache_dit_serving.ranks.group import Group
from tests.support.in_process import EMBEDDED, load
from tests.support.nodes import SECRET, free_meeting, meeting, node
from tests.support.processes import gone
from tests.support.ranks import CLOSE, Server, draw, open_to_others, running, spread

pytestmark = pytest.mark.filterwarnings("default")  # of torch's elastic agent outside of the main thread


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of the embedded model on two nodes, which meet at a free port of another loopback address."""
    monkeypatch.setenv(wire.JOIN_TOKEN, SECRET)
    return spread(nodes=2, rendezvous=free_meeting(), step_timeout_s=5)


def test_two_nodes_draw_as_one_process_and_join_again_after_faults(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "join.log"
    server = Server(settings)
    try:
        assert meeting(settings) in server.wait_for_reason("waiting for 1 of 2 nodes")
        with node(meeting(settings), log) as joined:
            loaded = server.ready()
            drawn, expected = draw(loaded), draw(load(EMBEDDED))
            assert np.allclose(drawn.media.array, expected.media.array, rtol=0, atol=CLOSE)
            assert drawn.record.cache.cached_steps == expected.record.cache.cached_steps
            assert len(server.pids()) == 1
            assert len(ranks_of(joined.pid)) == 1
            # Rendezvous and ranks keep to the interface that the settings name, here loopback.
            ranks_here = map(psutil.Process, server.pids().values())
            assert open_to_others(psutil.Process(), *ranks_here) == []
            assert open_to_others(psutil.Process(joined.pid)) == []
            assert caplog.text.count("must be closed to all but these machines") == 1
            assert f"ports {meeting(settings)} and 127.0.0.2:" in caplog.text
            assert "must be closed to all but these machines" in log.read_text()
            before = server.picture()

            generation = server.generate(num_inference_steps=100)
            running(generation)
            left = ranks_of(joined.pid)
            left[0].kill()
            assert "start anew" in server.lost(generation)
            assert server.picture() == before
            assert "node 1 of 2" in log.read_text()

            # One that hangs hears nothing, and is ended by its agent.
            hung = ranks_of(joined.pid)[0]
            generation = server.generate(num_inference_steps=100)
            running(generation)
            hung.suspend()
            assert "a step took longer than 5 s" in server.lost(generation)
            assert gone([hung])
            assert server.picture() == before

            left = psutil.Process(joined.pid).children(recursive=True)
            joined.kill()
            assert gone(left)
            server.wait_for_reason("waiting for 1 of 2 nodes")
        with node(meeting(settings), log) as joined:
            assert server.picture() == before
            left = psutil.Process(joined.pid).children(recursive=True)
            joined.terminate()
            assert joined.wait(90) == 128 + signal.SIGTERM
            assert gone(left)
    finally:
        server.worker.drain()
        server.worker.join(60)


def test_a_node_is_refused_that_has_another_secret_or_other_versions(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    group = Group(settings)
    waiting: list[str] = []
    threading.Thread(target=group.start, args=(waiting.append,), daemon=True).start()
    try:
        # What is no greeting, and what is one of a rank without the token of the group.
        host, _, port = meeting(settings).rpartition(":")
        for said in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"\0" * 8,
            wire.LENGTH.pack(2) + b"[]",
            wire.LENGTH.pack(4) + b"\xff{{{",
        ):
            with socket.create_connection((host, int(port)), 60) as stranger:
                stranger.sendall(said)
                assert stranger.recv(1) == b""
        with wire.connect(meeting(settings)) as stranger:
            stranger.send(wire.Hello(rank=0, pid=1, token="guessed"))
            with pytest.raises(wire.Closed):
                stranger.receive()
        with monkeypatch.context() as patch:
            patch.setenv(wire.JOIN_TOKEN, "guesséd")
            patch.setattr(join, "configure_logs", lambda *given: None)  # this process is the tests'
            assert join.main([meeting(settings)]) == 1
        assert capsys.readouterr().err.splitlines()[-1] == "CACHEDIT_JOIN_TOKEN is not the server's"
        with wire.connect(meeting(settings)) as other:
            other.send(wire.Join(token=SECRET, gpus=0, versions=versions.versions() | {"torch": "1.0"}))
            refused = wire.WELCOME.validate_python(other.receive()[0])
        assert isinstance(refused, wire.Failed)
        assert refused.message == f"this node has torch 1.0, and the server has {versions.versions()['torch']}"
        assert waiting == [f"waiting for 1 of 2 nodes to join (cache-dit-serving join {meeting(settings)})"]
    finally:
        group.close()


@pytest.mark.usefixtures("settings")
def test_join_without_a_secret_is_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(wire.JOIN_TOKEN, "")
    monkeypatch.setattr(join, "configure_logs", lambda *given: None)  # this process is the tests'
    assert join.main(["127.0.0.2:1"]) == 2
    assert f"set {wire.JOIN_TOKEN} to the secret" in capsys.readouterr().err


def test_a_node_with_fewer_gpus_than_ranks_is_refused(settings: Settings) -> None:
    group = Group(settings)
    group._on_gpus = True
    joining = wire.Join(token=SECRET, gpus=0, versions=versions.versions())
    assert group._unfit(joining) == "this node has 0 GPUs, and each node needs 1"
    assert group._unfit(joining.model_copy(update={"gpus": 1})) is None
    group.close()


def test_nodes_need_a_secret_and_an_address_of_this_machine(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LoadError, match=r"cannot listen at 192\.0\.2\.1:29400"):
        Group(spread(nodes=2, rendezvous="192.0.2.1:29400"))
    monkeypatch.delenv(wire.JOIN_TOKEN)
    with pytest.raises(LoadError, match="set CACHEDIT_JOIN_TOKEN to a secret, the same one on every node"):
        Group(settings)


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"ulysses_size": 2, "nodes": 2}, "several nodes need rendezvous"),
        ({"ulysses_size": 3, "nodes": 2, "rendezvous": "a:1"}, "3 GPUs in all cannot be on 2 nodes"),
        ({"ulysses_size": 2, "rendezvous": "a:1"}, "rendezvous has no effect with one node"),
        ({"ulysses_size": 2, "nodes": 2, "rendezvous": "a"}, "rendezvous"),
        ({"ulysses_size": 2, "nodes": 2, "rendezvous": "0.0.0.0:1"}, "where the other nodes reach this one"),
    ],
)
def test_settings_of_nodes_that_contradict_each_other(fields: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ValidationError, match=remedy):
        ParallelismSettings.model_validate(fields)


def test_nodes_take_one_worker() -> None:
    with pytest.raises(ValidationError, match="must be 1 with several"):
        Settings.model_validate(
            {
                "parallelism": {"ulysses_size": 2, "nodes": 2, "rendezvous": "a:1"},
                "server": {"workers": 2},
            }
        )


@pytest.mark.parametrize("arguments", [[], ["here"], [":80"], ["a:b"]])
def test_join_says_what_it_takes(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        join.main(arguments)
    assert "HOST:PORT" in capsys.readouterr().err
