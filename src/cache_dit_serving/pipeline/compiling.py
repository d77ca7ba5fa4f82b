"""torch.compile on a pipeline's blocks.

Blocks are compiled, not whole transformers. The decision about reuse then stays outside the graphs, and other cache
settings cause no compilation. Nor do other sizes, since shapes are dynamic by default, or other LoRA scales, since
these are tensors (:mod:`pipeline.lora`).
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import TYPE_CHECKING, Any

import torch

from cache_dit_serving.errors import LoadError
from cache_dit_serving.pipeline.compiler import missing_for
from cache_dit_serving.pipeline.quantize import DENOISERS
from cache_dit_serving.private import make_folder

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from diffusers import DiffusionPipeline

    from cache_dit_serving.config.acceleration import CompileSettings

logger = logging.getLogger(__name__)

MODES = {"default": None, "max-autotune": "max-autotune-no-cudagraphs"}
"""torch.compile's mode for each of ours. CUDA graphs are off: they would overwrite the activations that the cache
holds."""


def prepare(settings: CompileSettings | None) -> None:
    """Set the folder of compiled code. To be called before anything imports the compiler.

    Raises:
        LoadError: there is no C++ compiler, or no header of Python, or the folder cannot be written.
    """
    if settings is None:
        return
    if (missing := missing_for("C++")) is not None:
        raise LoadError(f"compile: there is no {missing}; install it, or leave compile out")
    if settings.folder is not None:
        folder = _writable(settings.folder.expanduser().absolute())
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
        os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")


def compile_blocks(
    pipe: DiffusionPipeline, block_lists: Iterable[str], settings: CompileSettings, *, overlap: bool = True
) -> None:
    """Mark the repeated blocks of the denoisers for compilation at their first run.

    Args:
        block_lists: the cache's lists, `component.list`: used if a transformer's class names no repeated blocks.
        overlap: whether ranks exchange data while they compute.

    Raises:
        LoadError: the pipeline has no known repeated blocks.
    """
    _configure_inductor(settings, overlap=overlap)
    warnings.filterwarnings("ignore", message=".*does not implement _stable_hash_for_caching")  # quantised weights
    dynamic, mode = True if settings.dynamic else None, MODES[settings.mode]
    compiled = 0
    for name in DENOISERS:
        component = getattr(pipe, name, None)
        if component is None:
            continue
        repeated = getattr(component, "_repeated_blocks", None) or ()
        blocks = [each for each in component.modules() if type(each).__name__ in repeated]
        blocks = blocks or [block for label in block_lists for block in _blocks_at(component, name, label)]
        for block in blocks:
            block.compile(dynamic=dynamic, mode=mode)
        compiled += len(blocks)
    if not compiled:
        raise LoadError(f"compile: a {type(pipe).__name__} has no repeated blocks that are known; leave compile out")
    logger.info("%d blocks are compiled when they first run", compiled)


def _configure_inductor(settings: CompileSettings, *, overlap: bool) -> None:
    """Set the options of torch's compiler, which are global to the process.

    cache-dit 1.5.3 turns coordinate descent on and the cache of its results off. Each Triton kernel is then compiled
    and timed in tens of configurations at every start, which takes minutes on a GPU. torchao 0.18 turns coordinate
    descent on too, while it quantises. Here only the mode `max-autotune` uses it, and `compile.folder` keeps its
    results.
    """
    import cache_dit
    import torch._inductor

    cache_dit.set_compile_configs(compute_comm_overlap=overlap, autotune_local_cache=True)
    inductor: Any = torch._inductor.config
    tuned = settings.mode == "max-autotune"
    inductor.coordinate_descent_tuning = inductor.coordinate_descent_check_all_directions = tuned


def compiled_graphs() -> int:
    """Return the number of graphs that torch.compile has compiled in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _blocks_at(component: torch.nn.Module, name: str, label: str) -> Iterable[torch.nn.Module]:
    of, _, path = label.partition(".")
    blocks: Any = getattr(component, path, ()) if of == name else ()
    return list(blocks)


def _writable(folder: Path) -> Path:
    try:
        make_folder(folder)
        (folder / ".writable").touch()
    except OSError as error:
        raise LoadError("compile.folder cannot be written on the server") from error
    return folder
