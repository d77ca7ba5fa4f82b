"""Times and learning rates."""

from __future__ import annotations

import pytest
import torch

from training.flow import learning_rate_factor, sample_timesteps


def test_times_lie_inside_the_open_interval_and_repeat() -> None:
    times = sample_timesteps(48, torch.Generator().manual_seed(3))
    assert times.shape == (48,)
    assert times.min() > 0
    assert times.max() < 1
    assert torch.equal(times, sample_timesteps(48, torch.Generator().manual_seed(3)))


def test_times_follow_the_mixture() -> None:
    times = sample_timesteps(20_000, torch.Generator().manual_seed(0))
    # Below one half: the logit-normal's Phi(-0.2 / 1.1) = 0.428 and the uniform's 0.5.
    assert (times < 0.5).float().mean().item() == pytest.approx(0.7 * 0.428 + 0.3 * 0.5, abs=0.005)


def test_times_are_stratified() -> None:
    means = torch.stack([sample_timesteps(48, torch.Generator().manual_seed(s)).mean() for s in range(200)])
    independent = torch.stack([torch.rand(48, generator=torch.Generator().manual_seed(s)).mean() for s in range(200)])
    assert means.std() < independent.std() / 5


def test_times_of_tiny_batches() -> None:
    assert sample_timesteps(1, torch.Generator()).shape == (1,)


@pytest.mark.parametrize(
    ("step", "progress", "factor"), [(0, 0.0, 0.1), (9, 0.1, 1.0), (99, 0.4, 1.0), (99, 0.7, 0.5), (99, 1.0, 0.0)]
)
def test_learning_rate(step: int, progress: float, factor: float) -> None:
    assert learning_rate_factor(step, progress, warmup_steps=10, hold=0.4) == pytest.approx(factor)
