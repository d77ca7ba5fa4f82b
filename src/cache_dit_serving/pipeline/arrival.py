"""Outputs on their way from the device: bytes are made there, and copied beside the work that follows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from cache_dit_serving.media.images import pixels_of

if TYPE_CHECKING:
    from cache_dit_serving.media.values import Array


def bytes_of(frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return decoded frames as bytes, and whether all their values are finite; both stay on the device.

    The bytes are those of diffusers' VaeImageProcessor: float32 times 255, rounded half to even.

    Args:
        frames: (..., channels, height, width) in [0, 1], of any floating dtype.

    Returns:
        Bytes (..., height, width, channels), and a truth without dimensions.
    """
    *several, channels, height, width = frames.shape
    made, finite = [], torch.ones((), dtype=torch.bool, device=frames.device)
    # One frame at a time: a whole clip in float32 takes as much of the device's memory as the decoder left.
    for frame in frames.reshape(-1, channels, height, width):
        values = frame.float()
        least, most = values.aminmax()  # both NaN if any value is; far faster on a CPU than to look at each value
        finite &= torch.isfinite(least) & torch.isfinite(most)
        made.append(_bytes_of_frame(values))
    return torch.stack(made).reshape(*several, height, width, channels), finite


def _bytes_of_frame(values: torch.Tensor) -> torch.Tensor:
    """Return bytes (height, width, channels) of a frame (channels, height, width) in float32."""
    if values.device.type == "cpu":
        with np.errstate(invalid="ignore"):  # values that are not finite are refused later
            return torch.from_numpy(pixels_of(values.permute(1, 2, 0).numpy()))
    return (values * 255).round_().to(torch.uint8).permute(1, 2, 0)


def on_its_way(tensor: torch.Tensor, stream: torch.cuda.Stream | None = None) -> Callable[[], Array]:
    """Start a copy to the host; return a function that waits for it, on any thread, and returns the array.

    Args:
        stream: stream that copies; None: the current one. Another one copies beside the kernels that follow, so the
            tensor must not be written to afterwards.
    """
    if tensor.device.type != "cuda":
        array: Array = tensor.cpu().numpy()
        return lambda: array
    current = torch.cuda.current_stream(tensor.device)
    held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copied = torch.cuda.Event()
    if stream is None:
        held.copy_(tensor, non_blocking=True)
        copied.record(current)
    else:
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            held.copy_(tensor, non_blocking=True)
        copied.record(stream)
        tensor.record_stream(stream)

    def arrived() -> Array:
        copied.synchronize()
        result: Array = held.numpy()
        return result

    return arrived


@functools.cache
def copying_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return the stream of a device that copies outputs to the host; None of a device without such streams."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None
