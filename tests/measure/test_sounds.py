"""SNR and the spectral distance against torch's spectra and values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cache_dit_serving.measure.distances.sounds import snr, spectral
from cache_dit_serving.media.values import Array

RATE = 16_000
TIME = np.arange(RATE) / RATE
TONE = np.sin(2 * np.pi * 440 * TIME)[None]
NOISE = np.random.default_rng(1).normal(0, 0.1, (2, 5000))


def by_torch(audio: Array, reference: Array) -> float:
    figures = []
    for length in (512, 1024, 2048):
        step, window = length // 4, torch.hann_window(length, dtype=torch.float64)
        rest = -(audio.shape[-1] - length) % step
        spectra = [
            torch.stft(
                torch.nn.functional.pad(torch.from_numpy(sound), (0, rest)),
                length,
                step,
                window=window,
                center=False,
                return_complex=True,
            )
            for sound in (audio, reference)
        ]
        ours, theirs = (20 * torch.log10((spectrum.abs() * 2 / window.sum()).clamp(min=1e-5)) for spectrum in spectra)
        figures.append((ours - theirs).square().mean(dim=1).sqrt().mean().item())
    return float(np.mean(figures))


@pytest.mark.parametrize("seed", range(3))
def test_the_spectral_distance_is_that_of_torchs_spectra(seed: int) -> None:
    other = NOISE + np.random.default_rng(seed + 2).normal(0, 0.05, NOISE.shape)
    assert spectral(other, NOISE) == pytest.approx(by_torch(other, NOISE), abs=1e-4)


def test_a_louder_sound_is_as_far_as_its_gain() -> None:
    assert spectral(2 * NOISE, NOISE) == pytest.approx(20 * math.log10(2), abs=0.01)
    assert snr(2 * NOISE, NOISE) == pytest.approx(0)


def test_the_spectral_distance_hears_no_delay_that_snr_measures() -> None:
    long = np.random.default_rng(4).normal(0, 0.1, (1, RATE))
    steady = np.sin(2 * np.pi * 440 * (TIME + 1 / 880))[None]
    assert snr(steady, TONE) < -5
    assert spectral(steady, TONE) < spectral(TONE + 0.01 * long, TONE)


def test_equal_sounds_have_no_distance() -> None:
    assert spectral(NOISE, NOISE) == 0
    assert math.isinf(snr(NOISE, NOISE))


def test_silence_and_a_sound_below_a_window_are_finite() -> None:
    silent, short = np.zeros((1, 30)), np.full((1, 30), 0.5)
    assert spectral(silent, silent) == 0
    assert 0 < spectral(short, silent) < 100
    assert snr(short, silent) == -math.inf


@pytest.mark.parametrize("measure", [snr, spectral])
def test_sounds_of_other_lengths_are_refused(measure: object) -> None:
    assert callable(measure)
    with pytest.raises(ValueError, match="of one shape"):
        measure(TONE, TONE[:, :1])
