"""Attention backends, checked before they are set.

cache-dit 1.5.3 accepts a backend that the platform cannot run. The setting is global to the process, so every pipeline
then fails until it is set back. A backend that is not known to run here is therefore refused by name.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cache_dit
import torch

from cache_dit_serving.errors import LoadError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

NATIVE = "native"


@dataclass(frozen=True)
class Backend:
    """Requirements of an attention backend.

    Attributes:
        package: package that must be installed; None: torch alone.
        least: least compute capability; has no effect beside `major`.
        major: accepted major numbers of the compute capability, from the backend's own check or its kernels.
        exactly: further accepted compute capabilities.
        device_type: torch's name of the device type.
    """

    package: str | None = None
    least: tuple[int, int] = (0, 0)
    major: tuple[int, ...] = ()
    exactly: tuple[tuple[int, int], ...] = ()
    device_type: str = "cuda"

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Return whether the backend runs on a GPU of this compute capability."""
        if self.major:
            return capability[0] in self.major or capability in self.exactly
        return capability >= self.least

    @property
    def capabilities(self) -> str:
        """Accepted compute capabilities, in words."""
        if not self.major:
            return f"{_dotted(self.least)} or more"
        return " or ".join([*map(_dotted, self.exactly), *(f"{major}.x" for major in self.major)])


BACKENDS = {
    "_native_cudnn": Backend(least=(8, 0)),
    "_sdpa_cudnn": Backend(least=(8, 0)),
    "flash": Backend("flash_attn", least=(8, 0)),
    "flash_varlen": Backend("flash_attn", least=(8, 0)),
    "_flash_3": Backend("flash_attn_interface", major=(9,)),
    "sage": Backend("sageattention", least=(8, 0)),
    "sage3": Backend("sageattn3", major=(10, 12)),
    "ffpa": Backend("ffpa_attn", major=(12,), exactly=((8, 9),)),
    "ffpa_fp8": Backend("ffpa_attn", major=(12,), exactly=((8, 9),)),
    "ffpa_fp8_per_block": Backend("ffpa_attn", major=(12,), exactly=((8, 9),)),
    "ffpa_fp4": Backend("ffpa_attn", major=(12,)),
    "_native_npu": Backend("torch_npu", device_type="npu"),
    "_npu_fia": Backend("torch_npu", device_type="npu"),
    "_mindiesd_laser": Backend("mindiesd", device_type="npu"),
}
"""Requirements of cache-dit 1.5.3's backends by name; `_native_cudnn` is diffusers'. `native` runs everywhere."""


def refusal(name: str, device: torch.device) -> str | None:
    """Return the reason that a backend cannot run on a device, as a phrase that follows its name; None if it can."""
    if name == NATIVE:
        return None
    backend = BACKENDS.get(name)
    if backend is None:
        return "is not known"
    if device.type != backend.device_type:
        return f"does not run on {device.type}"
    if device.type == "cuda" and not backend.runs_on(capability := torch.cuda.get_device_capability(device)):
        return f"needs a GPU of compute capability {backend.capabilities}; this one has {_dotted(capability)}"
    if backend.package is not None and importlib.util.find_spec(backend.package) is None:
        return f"needs the package {backend.package}, which is not installed"
    return None


def usable_backends(device: torch.device) -> list[str]:
    """Return the backends that can run on a device with the installed packages."""
    return [name for name in (NATIVE, *BACKENDS) if refusal(name, device) is None]


def check(name: str | None, device: torch.device) -> None:
    """Refuse a backend that the device cannot run, before any weights are loaded.

    Raises:
        LoadError: the backend cannot run; the message lists those that can.
    """
    if name is not None and (why := refusal(name, device)):
        raise LoadError(f"attention backend {name!r} {why}; usable here: {', '.join(usable_backends(device))}")


def set_backend(pipe: DiffusionPipeline, name: str) -> None:
    """Set the attention backend of the pipeline's transformers, one that passed :func:`check`.

    Raises:
        LoadError: the transformers do not support the backend.
    """
    if name == NATIVE:
        return
    try:
        cache_dit.set_attn_backend(pipe, name)
    except (RuntimeError, ValueError, ImportError) as error:
        raise LoadError(f"attention backend {name!r} cannot be set on a {type(pipe).__name__}") from error


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
