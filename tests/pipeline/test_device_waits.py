"""FLUX.1-dev and Qwen-Image at their published width: no step waits for the device, none mixes devices or dtypes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import full_size
from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.pipeline.cache import PipelineCache
from tests.support.dataless import DEVICE, Finding, pipeline, watched

pytestmark = pytest.mark.slow

PASSES = {"flux.1-dev": 1, "qwen-image": 2}
MASK = {
    "Fn_compute_blocks": 1,
    "steps_computation_mask": [1, 0, 1],
    "steps_computation_policy": "static",
    "residual_diff_threshold": 1.0,
}
STEPS = 3
RESIDUAL_DIFFERENCE = ("cache_dit/caching/cache_contexts/cache_manager.py", "similarity")


@functools.cache
def model(name: str) -> tuple[Any, PipelineCache]:
    pipe = pipeline(name)
    return pipe, PipelineCache(pipe)


def embeddings(name: str) -> dict[str, torch.Tensor]:
    def of(*shape: int) -> torch.Tensor:
        return torch.empty(1, *shape, device=DEVICE, dtype=torch.bfloat16)

    if name == "flux.1-dev":
        return {"prompt_embeds": of(512, 4096), "pooled_prompt_embeds": of(768)}
    lengths = {"prompt_embeds": 20, "negative_prompt_embeds": 6}
    masks = {
        f"{field}_mask": torch.ones(1, length, device=DEVICE, dtype=torch.long) for field, length in lengths.items()
    }
    return {field: of(length, 3584) for field, length in lengths.items()} | masks


def found_in_steps(
    name: str,
    settings: dict[str, Any] | None,
    steps: int = STEPS,
    difference: float = 1.0,
    plant: Callable[[torch.Tensor], object] = lambda latents: None,
) -> list[Finding]:
    """Draw at 1024 px; return the findings from the first forward pass to the end of the last step.

    Args:
        settings: of the cache; None: no cache.
        difference: the residual difference at each step.
        plant: called in the first step with the transformer's input.
    """
    pipe, cache = model(name)
    cache.prepare(CacheSettings.model_validate(settings) if settings else None, steps, passes=PASSES[name])
    fields = {key: value for key, value in full_size.request_of(name).items() if key != "negative_prompt"}
    fields |= embeddings(name) | {"width": 1024, "height": 1024, "num_inference_steps": steps, "output_type": "latent"}

    def forward_begins(module: object, args: object, kwargs: dict[str, Any]) -> None:
        if findings.step == 0:
            findings.step = 1
            plant(kwargs["hidden_states"])

    def step_ends(pipe: object, index: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
        cache.reused_blocks()
        findings.step = index + 2
        return {}

    hook = pipe.transformer.register_forward_pre_hook(forward_begins, with_kwargs=True)
    try:
        with watched(difference) as findings:
            latents = pipe(
                generator=torch.Generator("cpu").manual_seed(1), callback_on_step_end=step_ends, **fields
            ).images
    finally:
        hook.remove()
    assert (latents.device, latents.dtype) == (DEVICE, torch.bfloat16)
    return [finding for finding in findings.all if 1 <= finding.step <= steps]


@pytest.mark.parametrize("name", list(PASSES))
@pytest.mark.parametrize("settings", [None, MASK], ids=["no cache", "mask"])
def test_no_step_waits_or_mixes(name: str, settings: dict[str, Any] | None) -> None:
    assert found_in_steps(name, settings) == []
    if settings:
        record = model(name)[1].record()
        assert record is not None
        assert sorted(record.cached_steps()) == [1]


@pytest.mark.parametrize("name", list(PASSES))
def test_with_a_threshold_a_step_waits_once_a_pass_for_cache_dits_residual_difference(name: str) -> None:
    settings = {"max_warmup_steps": 1, "residual_diff_threshold": 0.2, "Fn_compute_blocks": 1}
    found = found_in_steps(name, settings, difference=0.1)
    assert {(finding.kind, finding.file, finding.function) for finding in found} == {("wait", *RESIDUAL_DIFFERENCE)}
    assert [finding.step for finding in found] == [step for step in (2, 3) for _ in range(PASSES[name])]


def value(latents: torch.Tensor) -> object:
    return latents.sum().item()


def truth(latents: torch.Tensor) -> object:
    return bool((latents > 0).all())


def to_the_device(latents: torch.Tensor) -> object:
    return torch.ones(3).to(latents.device)


def made_on_the_device(latents: torch.Tensor) -> object:
    return torch.tensor([1.0], device=latents.device)


def index_on_the_host(latents: torch.Tensor) -> object:
    return latents[:, torch.tensor([0, 1])]


def product_of_two_devices(latents: torch.Tensor) -> object:
    return torch.matmul(latents, torch.ones(latents.shape[-1], 1, dtype=latents.dtype))


def product_of_two_dtypes(latents: torch.Tensor) -> object:
    return torch.matmul(latents, torch.ones(latents.shape[-1], 1, device=latents.device))


PLANTS: dict[Callable[[torch.Tensor], object], str] = {
    value: "wait",
    truth: "wait",
    to_the_device: "wait",
    made_on_the_device: "wait",
    index_on_the_host: "devices",
    product_of_two_devices: "devices",
    product_of_two_dtypes: "dtypes",
}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_fault_is_found(plant: Callable[[torch.Tensor], object]) -> None:
    with watched() as findings:
        plant(torch.empty(1, 4096, 64, device=DEVICE, dtype=torch.bfloat16))
    assert [(each.kind, each.function) for each in findings.all] == [(PLANTS[plant], plant.__name__)]


@pytest.mark.parametrize(
    "operation", [torch.Tensor.cpu, torch.nonzero, lambda latents: latents[latents > 0]], ids=["cpu", "nonzero", "mask"]
)
def test_what_cannot_be_had_without_data_is_found_as_it_fails(operation: Callable[[torch.Tensor], object]) -> None:
    with watched() as findings, pytest.raises(NotImplementedError):
        operation(torch.empty(4, 4, device=DEVICE))
    assert [finding.kind for finding in findings.all] == ["wait"]


def test_a_fault_in_a_step_is_found_with_its_step() -> None:
    (found,) = found_in_steps("flux.1-dev", None, steps=1, plant=value)
    assert (found.kind, found.function, found.step) == ("wait", "value", 1)


def test_the_host_may_read_its_own_values_and_pass_scalars() -> None:
    with watched() as findings:
        assert torch.tensor(2.0).item() == 2.0
        torch.empty(4, device=DEVICE) * torch.tensor(2.0)
        torch.ones(3).to(DEVICE, non_blocking=True)
    assert findings.all == []
