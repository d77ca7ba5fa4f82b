"""CUDA tensors without data: their bytes, the operations on them, and those that would wait for the device.

Tensors on the host are real, so schedulers and tokenizers compute what they do on a machine with a GPU. Nothing on the
device is computed: a model of any size is drawn in the time that Python takes.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from tools.full_size.device_guard import guard_cuda

DEVICE = torch.device("cuda:0")
HOST = torch.device("cpu")
TORCH = "/torch/"
MODE = FakeTensorMode(allow_non_fake_inputs=True)
VALUE_READS = {"_local_scalar_dense", "item", "is_nonzero"}
VALUE_SHAPED = {"nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive"}
"""Operations whose result the host has to know: a shape by the values, or a truth."""
CONSTRUCTORS = (torch.tensor, torch.as_tensor)
SMALL = 2**16
"""Most elements of a tensor whose values are kept: as many as the position ids of an image of 2048 x 2048."""
COPIES = {"copy_", "_to_copy"}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution"}
"""Operations that fail on operands of two dtypes."""


@dataclass(frozen=True)
class Finding:
    """An operation that waits for the device, or that no device runs."""

    kind: str
    """`wait`, `devices` or `dtypes`."""
    operation: str
    file: str
    """Path of the caller, from the package's folder."""
    line: int
    step: int
    """Step that the operation is in, from 1; 0 before the first forward pass."""


@dataclass
class Drawn:
    """Record of one drawing."""

    step: int = 0
    """Step that is drawn now; 0 before the first forward pass."""
    steps: int = 0
    """Steps that are done."""
    findings: list[Finding] = field(default_factory=list)
    flop: dict[int, float] = field(default_factory=dict)
    """Floating-point operations by step."""
    held: int = 0
    """Bytes of the tensors that are on the device now, weights apart."""
    peaks: dict[str, int] = field(default_factory=dict)
    """Most bytes held at once, by part of the drawing."""
    part: str = "before"

    def note(self, kind: str, operation: str) -> None:
        """Record an operation under the innermost caller outside torch."""
        frame = sys._getframe(1)
        while frame.f_back is not None and (frame.f_code.co_filename == __file__ or TORCH in frame.f_code.co_filename):
            frame = frame.f_back
        file = frame.f_code.co_filename.rpartition("site-packages/")[2]
        self.findings.append(Finding(kind, operation, file, frame.f_lineno, self.step))

    def count(self, flop: float) -> None:
        """Add floating-point operations to the step's."""
        self.flop[self.step] = self.flop.get(self.step, 0) + flop

    def hold(self, storage: torch.UntypedStorage) -> None:
        """Count a tensor's memory until it is freed."""
        size = storage.nbytes()
        self.held += size
        self.peaks[self.part] = max(self.peaks.get(self.part, 0), self.held)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.held -= size


class _Operations(TorchDispatchMode):
    def __init__(self, drawn: Drawn) -> None:
        super().__init__()
        self._drawn = drawn

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        taken = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        target = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
        if not any(isinstance(tensor, FakeTensor) for tensor in taken) and (target is None or target.type == "cpu"):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if (read := self._read_by_the_host(func, taken, target, args, kwargs)) is not None:
            return read
        self._mixed(name, taken)
        args = _by_positions(name, args)
        made = func(*args, **kwargs)
        _keep_values(func, made, taken, args, kwargs)
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self._drawn.count(formula(*args, **kwargs, out_val=made))
        before = {tensor.untyped_storage()._cdata for tensor in taken}
        for tensor in tree_leaves(made):
            if isinstance(tensor, FakeTensor) and tensor.device == DEVICE:
                storage = tensor.untyped_storage()
                if storage._cdata not in before:
                    before.add(storage._cdata)
                    self._drawn.hold(storage)
        return made

    def _read_by_the_host(self, func: Any, taken: Any, target: Any, args: Any, kwargs: Any) -> Any:
        """Note an operation that waits; return its result if that depends on values, None for any other operation."""
        name = func.overloadpacket.__name__
        on_device = [tensor for tensor in taken if tensor.device == DEVICE]
        if not on_device and target != DEVICE:
            return None
        if name in VALUE_READS or name in VALUE_SHAPED or (name.startswith("index") and by_mask(args)):
            self._drawn.note("wait", name)
            if all(map(_known, taken)):
                read = _on_values(func, args, kwargs)
                return _known_on_device(read) if isinstance(read, torch.Tensor) else read
            if name in VALUE_READS:
                return _stand_in(on_device[0].dtype)
            return taken[0].new_empty((1, taken[0].dim()), dtype=torch.long) if name == "nonzero" else None
        if name in COPIES and len({*(tensor.device for tensor in taken), target} - {None}) > 1:
            if not kwargs.get("non_blocking"):
                self._drawn.note("wait", name)
            if HOST in (target, taken[0].device if name == "copy_" else None):
                with unset_fake_temporarily():
                    if all(map(_known, taken)):
                        return _on_values(func, args, kwargs)
                    return taken[0] if name == "copy_" else _filled(taken[0])
        return None

    def _mixed(self, name: str, taken: list[torch.Tensor]) -> None:
        # A tensor of no dimension may lie on the host: its value is an argument of the kernel.
        if name not in COPIES and len({tensor.device for tensor in taken if tensor.dim()}) > 1:
            self._drawn.note("devices", name)
        if name in PRODUCTS and len({tensor.dtype for tensor in taken if tensor.is_floating_point()}) > 1:
            self._drawn.note("dtypes", name)


class _Attention(TorchFunctionMode):
    """Attention as a fused kernel computes it, without a matrix of scores; and tensors made of values on the device."""

    def __init__(self, drawn: Drawn) -> None:
        super().__init__()
        self._drawn = drawn

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CONSTRUCTORS and not isinstance(args[0], torch.Tensor):
            # torch reads the values below the dispatch of operations.
            return func(tree_map(self._read, args[0]), *args[1:], **(kwargs or {}))
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = [*args, *((kwargs or {})[name] for name in ("query", "key", "value")[len(args) :])][:3]
        if not isinstance(query, FakeTensor):
            return func(*args, **(kwargs or {}))
        if len({query.dtype, key.dtype, value.dtype}) > 1:
            self._drawn.note("dtypes", "scaled_dot_product_attention")
        if len({query.device, key.device, value.device}) > 1:
            self._drawn.note("devices", "scaled_dot_product_attention")
        self._drawn.count(2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1]))
        return query.new_empty((*query.shape[:-1], value.shape[-1]))

    def _read(self, leaf: Any) -> Any:
        return leaf.item() if isinstance(leaf, FakeTensor) else leaf


@contextmanager
def drawing() -> Iterator[Drawn]:
    """Record what is done within to tensors on the device."""
    guard_cuda()
    drawn = Drawn()
    with torch.no_grad(), MODE, _Attention(drawn), _Operations(drawn):
        yield drawn


def on_device(value: Any) -> Any:
    """Return a copy, on the device, of each tensor in a nest of values; without its data."""

    def copy(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or isinstance(leaf, FakeTensor):
            return leaf
        with MODE:
            return torch.empty(leaf.shape, dtype=leaf.dtype, device=DEVICE)

    return tree_map(copy, value)


def on_host(value: Any) -> Any:
    """Return a copy, on the host, of each tensor in a nest of values: a stand-in if its data is not known.

    The host takes the place of the device.
    """

    def copy(leaf: Any) -> Any:
        if isinstance(leaf, FakeTensor):
            return leaf.values_on_host if _known(leaf) else _filled(leaf)
        return HOST if leaf == DEVICE else leaf

    return tree_map(copy, value)


def on_device_with_values(value: Any) -> Any:
    """Return a copy, on the device, of each tensor in a nest of values; masks and ids keep their data on the host.

    It is read there again: the length of a prompt decides on shapes.
    """

    def copy(leaf: Any) -> Any:
        made = on_device(leaf)
        if isinstance(leaf, torch.Tensor) and not isinstance(leaf, FakeTensor) and not leaf.is_floating_point():
            made.values_on_host = leaf
        return made

    return tree_map(copy, value)


def _known_on_device(value: torch.Tensor) -> Any:
    made = on_device(value)
    made.values_on_host = value
    return made


def _by_positions(name: str, args: Any) -> Any:
    """Return an indexing's arguments with the positions of a mask in place of the mask, if its values are known."""
    if not name.startswith("index") or not by_mask(args):
        return args
    indices: list[Any] = []
    for index in args[1]:
        if isinstance(index, torch.Tensor) and index.dtype == torch.bool and _known(index):
            with unset_fake_temporarily():
                positions = on_host(index).nonzero().unbind(1)
            indices += map(_known_on_device, positions)
        else:
            indices.append(index)
    return (args[0], indices, *args[2:])


def _keep_values(func: Any, made: Any, taken: list[torch.Tensor], args: Any, kwargs: Any) -> None:
    """Compute a small result on the host too, if the values of its operands are known there.

    Schedulers read time steps that they copied to the device: the value read is the one that they would read.
    """
    inplace = func.overloadpacket.__name__.endswith("_") and isinstance(made, FakeTensor)
    if not all(map(_known, taken)):
        if inplace and hasattr(made, "values_on_host"):
            del made.values_on_host
        return
    leaves = _tensors(made)
    if not leaves or any(leaf.numel() > SMALL for leaf in leaves) or torch.Tag.nondeterministic_seeded in func.tags:
        return
    for leaf, value in zip(leaves, _tensors(_on_values(func, args, kwargs)), strict=True):
        if isinstance(leaf, FakeTensor):
            leaf.values_on_host = value


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _known(tensor: torch.Tensor) -> bool:
    return not isinstance(tensor, FakeTensor) or hasattr(tensor, "values_on_host")


def _on_values(func: Any, args: Any, kwargs: Any) -> Any:
    """Return the result of an operation on the host."""

    def value(leaf: Any) -> Any:
        if isinstance(leaf, FakeTensor):
            return leaf.values_on_host
        return HOST if isinstance(leaf, torch.device) else leaf

    with unset_fake_temporarily():
        return func(*tree_map(value, args), **tree_map(value, kwargs))


def _stand_in(dtype: torch.dtype) -> float | int | bool:
    """Return a value in place of one that is not known."""
    return False if dtype == torch.bool else 1.0 if dtype.is_floating_point else 0


def _filled(tensor: torch.Tensor) -> torch.Tensor:
    return torch.full(tensor.shape, _stand_in(tensor.dtype), dtype=tensor.dtype)


def by_mask(args: Any) -> bool:
    """Return whether the arguments of an indexing hold a mask: its values decide on the result's shape."""
    indices = [leaf for leaf in tree_leaves(args[1:2]) if isinstance(leaf, torch.Tensor)]
    return any(index.dtype == torch.bool for index in indices)
