"""A model of published width without data: meta tensors, and a record of each operation that would wait for a GPU.

Shapes, devices and dtypes are those on a GPU; nothing is computed, so a picture of full size takes a second on a CPU.
`tools.full_size.dataless` counts memory and operations on tensors that name CUDA; these run through the cache as well.
"""

from __future__ import annotations

import importlib
import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import full_size
from tools.full_size.dataless import CONSTRUCTORS, PRODUCTS, VALUE_READS, VALUE_SHAPED, by_mask

DEVICE = torch.device("meta")
NETWORKS = ("transformer", "vae")
DEPTHS = ("num_layers", "num_single_layers")
BLOCKS = 3
"""Length of each list of transformer blocks, which are alike: more would repeat the same operations."""
COMPOSITES = {"matmul", "linear", "conv2d", "scaled_dot_product_attention"}
"""Products that reach the dispatch whole, for a model in inference mode."""


@dataclass(frozen=True)
class Finding:
    """An operation that waits for the device, or that no device runs."""

    kind: str
    """`wait`, `devices` or `dtypes`."""
    operation: str
    file: str
    """Path of the caller, from the package's folder."""
    function: str
    step: int


@dataclass
class Findings:
    """Findings of one drawing, and the step that it is in."""

    value: float
    """Result of each reading of a value, which is not there."""
    step: int = 0
    all: list[Finding] = field(default_factory=list)

    def note(self, kind: str, operation: str) -> None:
        """Record an operation under the innermost caller outside torch."""
        frames = [each for each in traceback.extract_stack() if "/torch/" not in each.filename]
        frames = [each for each in frames if each.filename != __file__]
        file = frames[-1].filename.rpartition("site-packages/")[2]
        self.all.append(Finding(kind, operation, file, frames[-1].name, self.step))


class _Operations(TorchDispatchMode):
    def __init__(self, findings: Findings) -> None:
        super().__init__()
        self._findings = findings

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        taken = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if DEVICE in {tensor.device for tensor in taken}:
            if name in VALUE_READS:
                self._findings.note("wait", name)
                return self._findings.value
            if name in VALUE_SHAPED or (name.startswith("index") and by_mask(args)):
                self._findings.note("wait", name)
        copies = name in ("copy_", "to", "_to_copy")
        # A tensor of no dimension may lie on the host: its value is an argument of the kernel.
        if not copies and len({tensor.device for tensor in taken if tensor.dim()}) > 1:
            self._findings.note("devices", name)
        if name in PRODUCTS | COMPOSITES and len({tensor.dtype for tensor in taken if tensor.is_floating_point()}) > 1:
            self._findings.note("dtypes", name)
        if copies and not kwargs.get("non_blocking") and len({*_devices(taken), _target(args, kwargs)} - {None}) > 1:
            self._findings.note("wait", name)
        return func(*args, **kwargs)


class _Constructions(TorchFunctionMode):
    """Tensors made on the device from values of Python: torch copies them there below the dispatch of operations."""

    def __init__(self, findings: Findings) -> None:
        super().__init__()
        self._findings = findings

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in CONSTRUCTORS and made.device == DEVICE and not isinstance(args[0], torch.Tensor):
            self._findings.note("wait", func.__name__)
        return made


@contextmanager
def watched(value: float = 1.0) -> Iterator[Findings]:
    """Record the operations within; each reading of a value gives `value`."""
    findings = Findings(value)
    with torch.inference_mode(), _Constructions(findings), _Operations(findings):
        yield findings


def pipeline(model: str) -> Any:
    """Return the pipeline of a model of `benchmarks.full_size`, in bfloat16, without text encoders and with short lists
    of blocks."""
    read = json.loads(full_size.MODELS[model].read_text(encoding="utf-8"))
    parts: dict[str, Any] = dict.fromkeys(read["components"])
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        for name in ("scheduler", *NETWORKS):
            library, class_name = read["components"][name]["class"]
            config = read["components"][name]["config"]
            config |= {key: BLOCKS for key in DEPTHS if key in config}
            with DEVICE if name in NETWORKS else torch.device("cpu"):
                made = getattr(importlib.import_module(library), class_name).from_config(config)
            parts[name] = made.eval().requires_grad_(False) if name in NETWORKS else made
    finally:
        torch.set_default_dtype(before)
    pipe = getattr(diffusers, read["pipeline"])(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _devices(tensors: list[torch.Tensor]) -> set[torch.device]:
    return {tensor.device for tensor in tensors}


def _target(args: Any, kwargs: Any) -> torch.device | None:
    """The device that a conversion names."""
    return next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)), None)
