"""Device guard for CUDA where torch is built for CPUs.

Code of torch that selects a tensor's device, such as indexing, fails on a CUDA tensor without data in a build for CPUs:
"PyTorch is not linked with support for cuda devices" (torch 2.13). FakeTensorMode sets a guard that does nothing in a
build for CUDA alone. The guard of meta tensors does nothing either, so it takes CUDA's place.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

CUDA, META, DEVICE_TYPES = 1, 14, 21
"""Numbers of `c10::DeviceType`."""
REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"


def guard_cuda() -> None:
    """Set the guard, if torch has none for CUDA. It stays for the life of the process."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    registry = (ctypes.c_void_p * DEVICE_TYPES).in_dll(library, REGISTRY)
    if registry[CUDA] is None:
        registry[CUDA] = registry[META]
