"""The benchmark of serving: how it waits for its server, and the direct calls that it compares with."""

from __future__ import annotations

import socket

import numpy as np

from benchmarks.serving import PROMPT, BarePipeline, is_ready
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.media.values import ImageOutput
from cache_dit_serving.pipeline.protocol import Unwatched
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.in_process import EMBEDDED, load


def test_a_direct_call_makes_the_picture_of_a_request() -> None:
    loaded = load(EMBEDDED)
    drawn = loaded.runner.sample(
        plan(resolve(GenerateRequest(prompt=PROMPT, seed=3), loaded.model)).call, Unwatched()
    ).media
    assert isinstance(drawn, ImageOutput)
    direct = np.asarray(BarePipeline(load_settings({})).draw(3))
    assert np.array_equal(direct, drawn.array)


def test_a_server_that_accepts_and_stays_silent_is_not_ready_yet() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not is_ready(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.1)


def test_a_port_where_nothing_listens_is_not_ready_yet() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert not is_ready(f"http://127.0.0.1:{port}")
