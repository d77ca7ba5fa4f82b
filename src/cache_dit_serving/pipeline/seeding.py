"""Seed of torch's own generators."""

from __future__ import annotations

import torch


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed the default generators of the CPU and of a device, as `torch.manual_seed` does.

    torch 2.13's `manual_seed` also seeds all other kinds of devices. It formats the stack for each kind that has not
    been used, CUDA and XPU on a machine without GPU: a millisecond for each output.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)
