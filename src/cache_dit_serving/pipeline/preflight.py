"""Checks of the device before any weights are loaded; also a program that the supervisor runs before its workers.

The program ends with status 2 and one line if the device cannot run the settings. It is a process of its own so that
the supervisor holds no torch and no GPU memory.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from cache_dit_serving.config.reading import resolve
from cache_dit_serving.config.sources import NotDownloaded, UnusableSource, sources_of
from cache_dit_serving.errors import LoadError
from cache_dit_serving.pipeline.environment import quiet_libraries

if TYPE_CHECKING:
    import torch

    from cache_dit_serving.config.settings import Settings


def devices(settings: Settings) -> tuple[torch.device, torch.device]:
    """Return the model's device and the device that draws the noise, after checks of the settings against them.

    Raises:
        LoadError: a device is not there, or cannot run the settings.
    """
    from cache_dit_serving.pipeline import attention, load, parallel, placing, quantize, triton_kernels

    device = load.choose_device(settings.model.device)
    generator_device = load.choose_generator(settings.model.generator_device, device)
    placing.check(settings.model, device)
    parallel.check(settings.parallelism, device)
    attention.check(settings.attention_backend, device)
    quantize.check(settings.quantize, device, settings.model.dtype)
    triton_kernels.check(settings, device)
    return device, generator_device


def check_checkpoints(settings: Settings, device: torch.device) -> None:
    """Refuse checkpoints that do not run on the device, as far as their headers are here or on the hub.

    Raises:
        LoadError: names the setting, the file and the remedy.
    """
    from cache_dit_serving.pipeline import svdquant

    with suppress(NotDownloaded, UnusableSource):  # the supervisor has refused the latter
        svdquant.check(sources_of(settings.model, download=False), device, settings.model.dtype)


def main() -> int:
    """Check the devices for the settings in this process's environment. Returns the exit status, 0 or 2."""
    quiet_libraries()
    label = ""
    try:
        for model in resolve().models:
            label = model.label
            device, _ = devices(model.settings)
            check_checkpoints(model.settings, device)
    except LoadError as error:
        print(f"{label}{error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
