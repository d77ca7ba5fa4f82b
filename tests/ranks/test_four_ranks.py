"""Groups of two dimensions, on two nodes of two ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cache_dit_serving.ranks import wire
from tests.support.in_process import EMBEDDED, load
from tests.support.nodes import SECRET, free_meeting, meeting, node
from tests.support.ranks import CLOSE, Server, draw, spread

pytestmark = [
    pytest.mark.apart,
    pytest.mark.filterwarnings("default"),  # of torch's elastic agent outside of the main thread
]


def test_ulysses_and_tensor_parallelism_together_draw_as_one_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(wire.JOIN_TOKEN, SECRET)
    settings = spread(ulysses_size=2, tp_size=2, nodes=2, rendezvous=free_meeting())
    server, one = Server(settings), load(EMBEDDED)
    try:
        with node(meeting(settings), tmp_path / "join.log"):
            loaded = server.ready(within_s=300)
            assert len(server.pids()) == 2
            for speed, steps in (("lossless", 2), ("balanced", 6)):
                drawn, expected = (draw(each, speed=speed, num_inference_steps=steps) for each in (loaded, one))
                assert np.allclose(drawn.media.array, expected.media.array, rtol=0, atol=CLOSE)
                assert drawn.record.cache.cached_steps == expected.record.cache.cached_steps
            assert drawn.record.cache.engaged
    finally:
        server.worker.drain()
        server.worker.join(60)
