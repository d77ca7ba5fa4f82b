"""What can be known of a device before any weights are loaded; as a program, what the supervisor runs before workers.

The program ends with status 2 and one line where the device cannot do what the settings want. A process of its own: the
supervisor holds no torch and no memory of a GPU.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.errors import LoadError
from cache_dit_serving.pipeline.environment import quiet_libraries

if TYPE_CHECKING:
    import torch

    from cache_dit_serving.config.settings import Settings


def devices(settings: Settings) -> tuple[torch.device, torch.device]:
    """The model's device and the one that noise is drawn on.

    Raises:
        LoadError: one of them is not there, or the device cannot do what the settings want.
    """
    from cache_dit_serving.pipeline import attention, load, parallel, placing, quantize

    device = load.choose_device(settings.model.device)
    generator_device = load.choose_generator(settings.model.generator_device, device)
    placing.check(settings.model, device)
    parallel.check(settings.parallelism, device)
    attention.check(settings.attention_backend, device)
    quantize.check(settings.quantize, device, settings.model.dtype)
    return device, generator_device


def main() -> int:
    """Check the devices for the settings of this process's environment."""
    quiet_libraries()
    try:
        devices(load_settings())
    except LoadError as error:
        print(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
