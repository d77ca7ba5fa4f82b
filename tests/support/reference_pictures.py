"""Pairs of pictures, float64 of fixed seeds, for comparisons with other implementations of a measure."""

from __future__ import annotations

import numpy as np

from cache_dit_serving.measure.distances.pixels import Pixels


def smooth(seed: int, height: int, width: int) -> Pixels:
    """Return a picture of a few waves in each channel."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    channels = []
    for _ in range(3):
        down, across, phase = random.uniform(-0.3, 0.3, 4), random.uniform(-0.3, 0.3, 4), random.uniform(0, 6, 4)
        waves = [np.sin(rows * d + columns * a + p) for d, a, p in zip(down, across, phase, strict=True)]
        channels.append(0.5 + 0.125 * sum(waves))
    return np.stack(channels, axis=-1)


def with_noise(picture: Pixels, seed: int, sigma: float) -> Pixels:
    """Return the picture with Gaussian noise, within [0, 1]."""
    noisy: Pixels = np.clip(picture + np.random.default_rng(seed).normal(0, sigma, picture.shape), 0, 1)
    return noisy


PAIRS: dict[str, tuple[Pixels, Pixels]] = {
    "a little noise": (with_noise(smooth(1, 64, 96), 2, 0.01), smooth(1, 64, 96)),
    "much noise": (with_noise(smooth(1, 64, 96), 3, 0.2), smooth(1, 64, 96)),
    "another picture": (smooth(4, 80, 48), smooth(5, 80, 48)),
    "darker": (0.7 * smooth(6, 96, 96), smooth(6, 96, 96)),
    "one window": (with_noise(smooth(7, 11, 11), 8, 0.05), smooth(7, 11, 11)),
    "shifted by a pixel": (smooth(9, 64, 65)[:, 1:], smooth(9, 64, 65)[:, :-1]),
}
"""Picture and reference by name."""
