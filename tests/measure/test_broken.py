"""Faulty outputs are found, and good ones are not taken for faulty."""

from __future__ import annotations

import numpy as np
import pytest

from cache_dit_serving.measure.distances.broken import Fault, fault_of
from cache_dit_serving.media.values import AudioOutput, ImageOutput, Media, VideoOutput
from tests.support.images import apple
from tests.support.reference_pictures import smooth, with_noise

GOOD = smooth(1, 48, 64)
NAN = GOOD.copy()
NAN[3, 3, 1] = np.nan
RANDOM = np.random.default_rng(1)


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        (ImageOutput(GOOD), None),
        (ImageOutput(np.asarray(apple().convert("RGB"))), None),
        (ImageOutput(with_noise(GOOD, 2, 0.1)), None),
        (ImageOutput(GOOD * 0.1), None),
        (ImageOutput(NAN), Fault.NOT_FINITE),
        (ImageOutput(np.zeros((8, 8, 3), np.uint8), finite=False), Fault.NOT_FINITE),
        (ImageOutput(np.zeros((8, 8, 3))), Fault.BLACK),
        (ImageOutput(np.full((8, 8, 3), 2, np.uint8)), Fault.BLACK),
        (ImageOutput(np.full((8, 8, 3), (0.9, 0.2, 0.1))), Fault.ONE_COLOUR),
        (ImageOutput(RANDOM.random((48, 64, 3))), Fault.NOISE),
        (VideoOutput(np.stack([GOOD, GOOD]), 8), None),
        (VideoOutput(np.stack([GOOD, 0 * GOOD]), 8), Fault.BLACK),
        (AudioOutput(RANDOM.random((1, 90)), 8000), None),
        (AudioOutput(np.zeros((1, 90)), 8000), Fault.SILENT),
        (AudioOutput(np.full((1, 90), np.inf), 8000), Fault.NOT_FINITE),
    ],
)
def test_a_fault_is_found(output: Media, fault: Fault | None) -> None:
    assert fault_of(output) is fault
