"""Where the pipeline runs: the libraries and their versions, memory."""

from __future__ import annotations

import functools
import logging
import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def quiet_libraries() -> None:
    """Keep the log to what an operator acts on. Before the imports: cache-dit 1.5.3 reads its level only then."""
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "warning")
    for name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
        logging.getLogger(name).setLevel(logging.ERROR)  # torchao tells at each start what it lacks for other machines
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@functools.cache
def library_versions() -> dict[str, str]:
    return {name: version(name) for name in ("bentoml", "cache-dit", "diffusers", "torch", "transformers")}


def memory_of(device: torch.device) -> dict[str, int]:
    """Bytes that this process has resident, and what the device holds where it says so."""
    memory = {"process_resident_bytes": resident_bytes()}
    if device.type == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info(device)
        memory |= {
            "device_total_bytes": total,
            "device_free_bytes": free,
            "device_allocated_bytes": torch.cuda.memory_allocated(device),
            "device_peak_allocated_bytes": torch.cuda.max_memory_allocated(device),
        }
    return memory


def resident_bytes() -> int:
    """Resident memory of this process, in bytes; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0
