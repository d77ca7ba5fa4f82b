"""Pictures of strangers over real processes: clients that leave while one is decoded, bombs, SIGTERM."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil
import pytest
import requests

from tests.support import hostile_files
from tests.support.clients import leave, start
from tests.support.images import apple, data_uri, file_of
from tests.support.processes import has_ended
from tests.support.renewed import renewed
from tests.support.server import Server, options, serving
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
KEY = f"sk-decoding-{'x' * 16}"
"""With a key, addresses of outputs are signed."""
WAITING = 33
"""Requests with a picture that a server of one decoder takes: more than the 32 threads that all routes share."""
FIELDS: dict[str, Any] = {"image_urls": [data_uri(file_of(apple()))], "num_inference_steps": 8, "seed": 1}


@pytest.fixture(scope="module")
def of_one_decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Server]]:
    """A server with one decoder, which is waited for without end."""
    environ = options(INPUTS__DECODERS=1, INPUTS__MAX_DECODE_S=3600, SERVER__API_KEYS=KEY)

    @contextmanager
    def begin() -> Iterator[Server]:
        with serving(tmp_path_factory.mktemp("decoding"), environ=environ) as running:
            running.session.headers["Authorization"] = f"Bearer {KEY}"
            yield running

    with renewed(begin) as of:
        yield of


@pytest.fixture
def decoding(of_one_decoder: Callable[[], Server]) -> Server:
    return of_one_decoder()


def decoders(server: Server) -> list[psutil.Process]:
    below = psutil.Process(server.process.pid).children(recursive=True)
    return [each for each in below if any("media.decode.process" in word for word in each.cmdline())]


def stop_decoder(server: Server) -> psutil.Process:
    """Let the decoder stand still, as if it were deep in a file."""
    assert server.generate(**FIELDS).status_code == 200
    (decoder,) = decoders(server)
    os.kill(decoder.pid, signal.SIGSTOP)
    # Until then it may still take the next picture out of its pipe.
    wait_until(lambda: decoder.status() == psutil.STATUS_STOPPED)
    return decoder


def has_work(decoder: psutil.Process) -> bool:
    """Whether there are bytes in its standard input."""
    unread = bytearray(4)
    with open(f"/proc/{decoder.pid}/fd/0", "rb", buffering=0) as pipe:
        fcntl.ioctl(pipe, termios.FIONREAD, unread)
    return any(unread)


@pytest.mark.parametrize("path", ["/generate", "/compare", "/jobs"])
def test_decoding_ends_when_its_client_has_gone(decoding: Server, path: str) -> None:
    decoder = stop_decoder(decoding)
    client = leave(decoding, path, **FIELDS)
    decoding.wait_for(lambda server: has_work(decoder))
    client.close()
    decoding.wait_for(lambda server: has_ended(decoder))
    assert decoding.generate(**FIELDS).status_code == 200


def test_while_every_decoder_stands_still_requests_without_pictures_and_signed_outputs_are_answered(
    decoding: Server,
) -> None:
    [address] = decoding.generate(num_inference_steps=2, output_format="url").json()["images"]
    assert "signature=" in address
    decoder = stop_decoder(decoding)
    with ExitStack() as stack:
        for _ in range(WAITING):
            stack.enter_context(leave(decoding, **FIELDS))
        decoding.wait_for(lambda server: has_work(decoder))
        assert decoding.generate(num_inference_steps=2).status_code == 200
        assert requests.get(address, timeout=60).content[:4] == b"\x89PNG"
        assert decoder.status() == psutil.STATUS_STOPPED
    decoding.wait_for(lambda server: has_ended(decoder))
    assert decoding.generate(**FIELDS).status_code == 200


def test_files_that_claim_too_much_leave_the_server_as_it_was(decoding: Server) -> None:
    expected = decoding.generate(**FIELDS).json()["images"]
    (decoder,) = decoders(decoding)
    bombs = [case() for case in hostile_files.PICTURES.values()]
    before = decoder.memory_info().rss
    for bomb in bombs:
        answer = decoding.generate(image_urls=[data_uri(bomb, "")])
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image_urls.0"), answer.text
    assert decoders(decoding) == [decoder]
    assert decoder.memory_info().rss - before < 200 * 2**20
    assert decoding.generate(**FIELDS).json()["images"] == expected


def test_sigterm_ends_decoding(decoding: Server) -> None:
    decoder = stop_decoder(decoding)
    decoded = start(decoding, **FIELDS)
    decoding.wait_for(lambda server: has_work(decoder))
    decoding.process.send_signal(signal.SIGTERM)
    answer = decoded.result(120)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    decoding.process.wait(120)
    assert has_ended(decoder)
