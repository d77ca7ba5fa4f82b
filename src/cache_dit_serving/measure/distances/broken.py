"""Faults of a single output that no distance is needed for: broken, black, one colour, noise, silence."""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from cache_dit_serving.measure.distances.pixels import Pixels, floats
from cache_dit_serving.media.values import Array, AudioOutput, Media

BLACK = 4 / 255
"""Greatest value of a picture that counts as black; full level is 1."""
ONE_COLOUR = 4 / 255
"""Greatest spread of a channel in a picture that counts as one colour."""
NOISE = 0.2
"""Correlation of neighbouring pixels below which a picture counts as noise; photographs have 0.9 and more."""
SILENCE = 1e-4
"""Greatest amplitude of a sound that counts as silent: -80 dB of full level."""


class Fault(StrEnum):
    """Fault of an output."""

    NOT_FINITE = "not finite"
    BLACK = "black"
    ONE_COLOUR = "one colour"
    NOISE = "noise"
    SILENT = "silent"


def fault_of(output: Media) -> Fault | None:
    """Return the fault of an output, of a video that of its first faulty frame; None if it has none."""
    if isinstance(output, AudioOutput):
        return fault_of_sound(output.array)
    if not output.finite:
        return Fault.NOT_FINITE
    frames = output.array if output.array.ndim == 4 else output.array[None]
    return next((fault for frame in frames if (fault := fault_of_picture(frame))), None)


def fault_of_picture(picture: Pixels) -> Fault | None:
    """Return the fault of a picture of (height, width, 3); None if it has none."""
    values = floats(picture)
    if not np.isfinite(values).all():
        return Fault.NOT_FINITE
    if values.max() <= BLACK:
        return Fault.BLACK
    if np.ptp(values, axis=(0, 1)).max() <= ONE_COLOUR:
        return Fault.ONE_COLOUR
    return Fault.NOISE if neighbour_correlation(values) < NOISE else None


def fault_of_sound(samples: Array) -> Fault | None:
    """Return the fault of a sound of (channels, samples); None if it has none."""
    if not np.isfinite(samples).all():
        return Fault.NOT_FINITE
    return Fault.SILENT if np.abs(samples).max(initial=0) <= SILENCE else None


def neighbour_correlation(picture: Pixels) -> float:
    """Return the correlation of neighbouring pixels' brightness, the higher of across and down; 0: white noise."""
    luma = floats(picture).astype(np.float64).mean(axis=-1)
    luma -= luma.mean()
    power = float(np.mean(luma**2))
    if not power or min(luma.shape) < 2:
        return 1.0
    across, down = np.mean(luma[:, 1:] * luma[:, :-1]), np.mean(luma[1:] * luma[:-1])
    return float(max(across, down)) / power
