"""What a model wants of a card and what the card can: operations, products of matrices, attention."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.progress import say


def flop_of_step(pipe: Any, fields: dict[str, Any]) -> tuple[float, torch.Tensor]:
    """Floating-point operations of a step, and the query of the transformer's first attention, by a picture of two
    steps.

    Attention is counted as two matrix products, which other kernels hide from the counter.

    Args:
        fields: of the pipeline's call.
    """
    counted: list[int] = []
    queries: list[torch.Tensor] = []
    forward = pipe.transformer.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        with _first_query(queries), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            made = forward(*args, **kwargs)
        counted.append(counter.get_total_flops())
        return made

    pipe.transformer.forward = counting
    try:
        with torch.inference_mode():
            pipe(generator=torch.Generator("cpu").manual_seed(1), **fields | {"num_inference_steps": 2})
    finally:
        pipe.transformer.forward = forward
    return sum(counted) / 2, queries[0]


@contextmanager
def _first_query(queries: list[torch.Tensor]) -> Iterator[None]:
    """Append the query of the first attention to an empty list. Text encoders attend too: enter it around the
    transformer alone."""
    attend = torch.nn.functional.scaled_dot_product_attention

    def attending(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not queries:
            queries.append(query.detach().clone())
        return attend(query, *args, **kwargs)

    with patch.object(torch.nn.functional, "scaled_dot_product_attention", attending):
        yield


def attention_ms(backends: list[str], query: torch.Tensor) -> dict[str, float]:
    """Milliseconds of one attention of the model, by each backend that runs.

    Args:
        query: of torch's function: batch, heads, tokens, channels.
    """
    there = {backend.value for backend in AttentionBackendName}
    each = query.transpose(1, 2).contiguous()
    taken = {}
    for name in backends:
        if name not in there:
            continue

        def attend(name: str = name) -> None:
            dispatch_attention_fn(each, each, each, backend=AttentionBackendName(name))

        try:
            with torch.inference_mode():
                taken[name] = 1000 * _seconds_of(attend, query.device)
        except (RuntimeError, ValueError, ImportError) as error:
            say(f"attention by {name} fails: {error}")
    return taken


def matrix_rate(device: torch.device, size: int) -> float:
    """FLOP/s of a product of two matrices, in the best of several runs."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return float(2 * size**3 / _seconds_of(lambda: torch.mm(left, right), device))


def _seconds_of(work: Callable[[], object], device: torch.device, times: int = 20) -> float:
    """Of one call, in the fastest of five runs of many after a first one."""
    work()
    taken = []
    for _ in range(5):
        synchronize(device)
        began = time.perf_counter()
        for _ in range(times):
            work()
        synchronize(device)
        taken.append((time.perf_counter() - began) / times)
    return min(taken)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
