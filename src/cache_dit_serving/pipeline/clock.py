"""When each denoising step ended, by the device's own clock where it runs behind Python."""

from __future__ import annotations

import time
from typing import Any

import torch


class StepClock:
    """Times the steps of one generation without waiting for the device in between.

    Kernels run behind Python: on an accelerator a step is timed by events in its stream, read once all is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """The first forward pass begins, or a step has been given to the device."""
        if self._device.type == "cpu":
            self._marks.append(time.perf_counter())
            return
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        self._marks.append(event)

    def seconds(self) -> list[float]:
        """Of each step; the device must have finished them."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._device.type == "cpu":
            return [later - earlier for earlier, later in pairs]
        return [earlier.elapsed_time(later) / 1000 for earlier, later in pairs]
