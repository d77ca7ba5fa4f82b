"""Traced tensors: a result knows its sources, and the values are those of ordinary tensors."""

from __future__ import annotations

import torch

from cache_dit_serving.pipeline.lora_tracing import plain, traced, used


def test_a_result_knows_the_tensors_that_it_is_made_of() -> None:
    tensors = traced({name: torch.full((4, 2), float(number)) for number, name in enumerate("abcd", start=1)})
    joined = torch.cat([tensors["a"] * 2.0, tensors["b"]], dim=0)
    halves = torch.chunk(joined, 2)
    assert used([halves[0].contiguous()]) == {"a", "b"}
    tensors["c"] *= 3.0
    assert used([tensors["c"]]) == {"c"}
    assert bool(torch.all(tensors["d"] == 4))
    assert used([*halves, tensors["c"]]) == {"a", "b", "c"}


def test_an_alpha_that_was_read_is_used_and_another_tensor_is_not() -> None:
    tensors = traced({"a": torch.ones(2), "a.alpha": torch.tensor(8.0), "b": torch.zeros(1)})
    assert tensors["b"].item() == 0
    assert used([tensors["a"] * (tensors["a.alpha"].item() / 2)]) == {"a", "a.alpha"}


def test_the_values_come_back_as_ordinary_tensors() -> None:
    value = torch.randn(3, 3)
    back = plain({"a": traced({"a": value})["a"] * 2.0})["a"]
    assert type(back) is torch.Tensor
    assert torch.equal(back, value * 2.0)
