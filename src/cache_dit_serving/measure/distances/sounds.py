"""Distances between two sounds: SNR and a spectral distance."""

from __future__ import annotations

import math

import numpy as np

from cache_dit_serving.measure.distances.pixels import same_shape
from cache_dit_serving.media.values import Array

WINDOWS = (512, 1024, 2048)
"""Lengths of the spectra's windows, samples."""
OVERLAP = 4
"""Number of windows that cover a sample."""
FLOOR = 1e-5
"""Amplitude that silence is taken for, of full level 1: -100 dB."""


def snr(audio: Array, reference: Array) -> float:
    """Return the signal-to-noise ratio, dB; infinite for equal sounds, minus infinity for a silent reference.

    Args:
        audio: (channels, samples), the same shape as `reference`.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(audio, reference)
    noise = float(np.mean((audio.astype(np.float64) - reference.astype(np.float64)) ** 2))
    signal = float(np.mean(reference.astype(np.float64) ** 2))
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def spectral(audio: Array, reference: Array) -> float:
    """Return the log-spectral distance, dB: 0 for equal spectra. It hears no phase, which SNR measures alone.

    Root mean square over the frequencies of the difference between two spectra in dB (Gray and Markel 1976,
    doi:10.1109/TASSP.1976.1162849), mean over time and channels, and over three lengths of window (as the spectral loss
    of Yamamoto et al. 2020, doi:10.1109/ICASSP40776.2020.9053795). A sound is filled up with silence to whole windows.

    Args:
        audio: (channels, samples), the same shape as `reference`.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(audio, reference)
    return float(np.mean([_spectral(audio, reference, length) for length in WINDOWS]))


def _spectral(audio: Array, reference: Array, length: int) -> float:
    apart = _decibels(audio, length) - _decibels(reference, length)
    return float(np.mean(np.sqrt(np.mean(apart**2, axis=-1))))


def _decibels(audio: Array, length: int) -> Array:
    """Return the spectra of each window, (channels, windows, frequencies), dB of full level."""
    samples = audio.astype(np.float64)
    step = length // OVERLAP
    missing = max(length - samples.shape[-1], -(samples.shape[-1] - length) % step)
    samples = np.pad(samples, ((0, 0), (0, missing)))
    window = np.hanning(length + 1)[:-1]
    framed = np.lib.stride_tricks.sliding_window_view(samples, length, axis=-1)[:, ::step]
    amplitude = np.abs(np.fft.rfft(framed * window)) * (2 / window.sum())
    return 20 * np.log10(np.maximum(amplitude, FLOOR))
