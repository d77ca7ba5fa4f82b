"""Ranks on GPUs, each kind against one GPU; skipped where there are fewer than two."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.support.in_process import EMBEDDED, load
from tests.support.ranks import draw, ranks, spread

pytestmark = pytest.mark.filterwarnings("default")  # of torch's elastic agent outside of the main thread
CLOSE = 1e-3
"""Greatest difference of a channel in float32: kernels on a part of the sequence round in another order."""


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize(
    "kind",
    [
        {"ring_size": 2},
        {"ulysses_size": 2},
        {"ulysses_size": 2, "ulysses_anything": True},
        {"ulysses_size": 2, "ulysses_async": True},
        {"ulysses_size": None, "tp_size": 2},
    ],
    ids=str,
)
def test_two_gpus_draw_as_one(kind: dict[str, Any]) -> None:
    one = load(EMBEDDED)
    with ranks(spread(**({"ulysses_size": None} | kind))) as two:
        for fields in ({}, {"speed": "lossless"}, {"width": 80, "height": 96}):
            drawn, expected = draw(two, **fields), draw(one, **fields)
            assert np.allclose(drawn.media.array, expected.media.array, rtol=0, atol=CLOSE)
            assert drawn.record.cache.cached_steps == expected.record.cache.cached_steps
