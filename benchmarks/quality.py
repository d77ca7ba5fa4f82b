"""How far one picture is from another: PSNR and SSIM."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import conv2d

Pixels = NDArray[np.floating]
"""(height, width, 3) in [0, 1]."""


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio in dB, infinite for equal pictures."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(a: Pixels, b: Pixels) -> float:
    """Structural similarity, mean over pixels and channels.

    Wang et al. 2004 (doi:10.1109/TIP.2003.819861): Gaussian window of 11 x 11 px with sigma 1.5, K1 0.01, K2 0.03.
    """
    offsets = torch.arange(11, dtype=torch.float64) - 5
    weights = torch.exp(-(offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    window = torch.outer(weights, weights)[None, None]
    x, y = (torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[:, None] for image in (a, b))
    mean_x, mean_y = conv2d(x, window), conv2d(y, window)
    var_x = conv2d(x * x, window) - mean_x**2
    var_y = conv2d(y * y, window) - mean_y**2
    covariance = conv2d(x * y, window) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    score = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(score.mean())
