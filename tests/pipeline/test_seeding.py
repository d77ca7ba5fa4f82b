"""torch's default generators, seeded for one output."""

from __future__ import annotations

import traceback

import pytest
import torch

from cache_dit_serving.pipeline.seeding import seed_generators

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
def test_a_seed_draws_the_noise_of_manual_seed(device: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        expected = [torch.randn(4), torch.randn(4, device=device)]
        seed_generators(torch.device(device), 7)
        drawn = [torch.randn(4), torch.randn(4, device=device)]
    assert all(map(torch.equal, drawn, expected))


def test_devices_that_are_not_there_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def formatted() -> list[str]:
        raise AssertionError("torch keeps the stack for a device that is not there")

    monkeypatch.setattr(traceback, "format_stack", formatted)
    with torch.random.fork_rng(devices=[]):
        seed_generators(torch.device("cpu"), 7)
