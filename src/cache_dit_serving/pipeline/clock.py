"""When each denoising step ended, by the device's own clock where it runs behind Python."""

from __future__ import annotations

import time
from typing import Any

import torch

# Where events can be timed; elsewhere the host's clock must do, which the cache's own comparisons keep in step.
DEVICES_WITH_EVENTS = ("cuda", "xpu")


class StepClock:
    """Times the steps of one generation without waiting for the device in between.

    Kernels run behind Python: on an accelerator a step is timed by events in its stream, read once all is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_device = device.type in DEVICES_WITH_EVENTS
        self._marks: list[Any] = []

    def mark(self) -> None:
        """The first forward pass begins, or a step has been given to the device."""
        if not self._on_device:
            self._marks.append(time.perf_counter())
            return
        event = torch.Event(self._device, enable_timing=True)
        event.record(torch.accelerator.current_stream(self._device))
        self._marks.append(event)

    def seconds(self) -> list[float]:
        """Of each step; the device must have finished them."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if not self._on_device:
            return [later - earlier for earlier, later in pairs]
        return [earlier.elapsed_time(later) / 1000 for earlier, later in pairs]
