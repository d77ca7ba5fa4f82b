"""Groups of two dimensions, on four ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_dit_serving.ranks import wire
from tests.support.in_process import EMBEDDED, load
from tests.support.nodes import SECRET, free_meeting, meeting, node
from tests.support.ranks import CLOSE, Server, draw, ranks, spread

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


@pytest.mark.parametrize(
    "inside",
    [{"ulysses_size": 2, "extra_parallel_modules": ("vae",)}, {"ulysses_size": None, "tp_size": 2, "vae_size": 4}],
    ids=["ulysses", "tensor"],
)
def test_guidance_is_shared_by_groups_that_spread_each_pass(inside: dict[str, Any]) -> None:
    guided = {"true_cfg_scale": 4.0, "negative_prompt": "blue"}
    one = load(EMBEDDED)
    with ranks(spread(guidance=2, **inside)) as four:
        for fields in ({"speed": "lossless", "num_inference_steps": 3}, {"num_inference_steps": 6}):
            for asked in (fields, fields | guided):
                drawn, expected = draw(four, **asked), draw(one, **asked)
                assert np.allclose(drawn.media.array, expected.media.array, rtol=0, atol=CLOSE)
                assert drawn.record.cache.cached_steps == expected.record.cache.cached_steps
                for mine, its in zip(drawn.record.stats, expected.record.stats, strict=True):
                    assert (mine.cached_steps, mine.cfg_cached_steps) == (its.cached_steps, its.cfg_cached_steps)
        assert drawn.record.cache.engaged
