"""Distances between two sounds: SNR."""

from __future__ import annotations

import math

import numpy as np

from cache_dit_serving.media.values import Array


def snr(audio: Array, reference: Array) -> float:
    """Return the signal-to-noise ratio, dB; infinite for equal sounds, minus infinity for a silent reference.

    Args:
        audio: (channels, samples), the same shape as `reference`.
    """
    noise = float(np.mean((audio.astype(np.float64) - reference.astype(np.float64)) ** 2))
    signal = float(np.mean(reference.astype(np.float64) ** 2))
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
