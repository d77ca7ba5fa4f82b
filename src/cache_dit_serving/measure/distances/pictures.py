"""Distances between two pictures: PSNR, SSIM and a difference picture."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cache_dit_serving.measure.distances.pixels import Pixels, floats, same_shape

Plane = NDArray[np.float64]

SIGMA, TAPS, K1, K2 = 1.5, 11, 0.01, 0.03


def psnr(a: Pixels, b: Pixels) -> float:
    """Return the peak signal-to-noise ratio, dB; infinite for equal images."""
    same_shape(a, b)
    error = float(np.mean((floats(a).astype(np.float64) - floats(b).astype(np.float64)) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(a: Pixels, b: Pixels) -> float:
    """Return the structural similarity, mean over channels and over the windows that lie within the picture.

    Wang et al. 2004 (doi:10.1109/TIP.2003.819861): Gaussian window of 11 x 11 px with sigma 1.5, K1 0.01, K2 0.03.

    Raises:
        ValueError: the shapes differ, or no window fits.
    """
    same_shape(a, b)
    if not has_ssim(a):
        raise ValueError(f"SSIM takes pictures of at least {TAPS} x {TAPS} px; these have {a.shape[1]} x {a.shape[0]}")
    a, b = floats(a), floats(b)
    # One channel at a time, because each takes several planes of working memory.
    return float(np.mean([_ssim_of_plane(a[..., channel], b[..., channel]) for channel in range(a.shape[-1])]))


def has_ssim(picture: Pixels) -> bool:
    """Return True if SSIM's window fits into the picture."""
    return min(picture.shape[:2]) >= TAPS


def _ssim_of_plane(a: Plane, b: Plane) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = _windowed(x), _windowed(y)
    var_x, var_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    c1, c2 = K1**2, K2**2
    score = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(score.mean())


def difference(a: Pixels, b: Pixels) -> Pixels:
    """Return the absolute difference, scaled to a maximum of 1; black for equal images or clips."""
    same_shape(a, b)
    gap: Pixels = np.abs(floats(a) - floats(b))
    greatest = gap.max()
    if greatest > 0:
        gap /= greatest  # in place, because a video's difference is as large as the video
    return gap


def _windowed(image: Plane) -> Plane:
    """Return the Gaussian-weighted mean around each pixel whose window lies within the image."""
    offsets = np.arange(TAPS) - TAPS // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    for _ in range(2):  # down, then across
        span = image.shape[0] - TAPS + 1
        rows: Plane = sum((image[tap : tap + span] * weight for tap, weight in enumerate(weights)), np.zeros(()))
        image = rows.swapaxes(0, 1)
    return image
