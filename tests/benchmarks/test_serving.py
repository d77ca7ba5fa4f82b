"""The benchmark of serving: how it waits for its server, and the direct calls that it compares with."""

from __future__ import annotations

import socket

import numpy as np

from benchmarks.serving import PROMPT, BarePipeline, Overhead, is_ready, overhead_lines, requests_within
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.measure.statistics import Estimate
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


def test_a_slow_machine_gets_fewer_requests_in_the_same_time() -> None:
    assert requests_within(80, picture_s=0.15) == 25
    assert requests_within(80, picture_s=0.34) == 14
    assert requests_within(80, picture_s=60) == 2


def test_the_ratio_is_told_with_its_interval_and_the_cpu_beside_it() -> None:
    found = Overhead(
        direct_s=0.17,
        inference_mode_s=0.15,
        served_s=0.155,
        ratio=Estimate(1.031, 1.012, 1.05, 80),
        thread_cpu_ratio=1.002,
        thread_waits=4.5,
        http_cpu_ms=6.0,
        requests=80,
    )
    lines = overhead_lines(found)
    assert "1.031 (1.012 to 1.050), goal at most 1.04, 80 pairs in turn" in lines[0]
    assert "CPU of the pipeline's thread: 1.002 of the direct call's" in lines[2]
