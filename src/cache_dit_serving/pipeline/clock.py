"""Timing of the denoising steps, by the device's own clock if kernels run behind Python."""

from __future__ import annotations

import time
from typing import Any

import torch

DEVICES_WITH_EVENTS = ("cuda", "xpu")
"""Device types whose events can be timed. Others are timed by the host's clock: the cache's comparisons wait for the
device."""


class StepClock:
    """Clock of one generation's steps, which never waits for the device in between.

    Kernels run behind Python. On an accelerator a step is timed by events in its stream, read after the last step.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_device = device.type in DEVICES_WITH_EVENTS
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Mark the begin of the first forward pass, or the end of a step's submission to the device."""
        if not self._on_device:
            self._marks.append(time.perf_counter())
            return
        event = torch.Event(self._device, enable_timing=True)
        event.record(torch.accelerator.current_stream(self._device))
        self._marks.append(event)

    def seconds(self) -> list[float]:
        """Return the seconds of each step. The device must have finished all of them."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if not self._on_device:
            return [later - earlier for earlier, later in pairs]
        return [earlier.elapsed_time(later) / 1000 for earlier, later in pairs]
