"""The tool that draws models at full size without data, and its table."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

from cache_dit_serving.config.footprints import footprints, unknown_footprints
from tests.support.server import ROOT
from tools.full_size import models
from tools.full_size.dataless import DEVICE, drawing, on_device_with_values
from tools.full_size.drawing import follow
from tools.full_size.measure import footprint, inputs
from tools.full_size.table import CARDS_GB, SIGN, table, written_table


def test_the_table_is_that_of_the_footprints() -> None:
    assert written_table() == table()


def test_each_row_is_of_the_shapes_and_defaults_that_are_there() -> None:
    assert {name: found.inputs for name, found in footprints().items()} == {
        name: inputs(name) for name in models.SHAPES["models"]
    }
    assert unknown_footprints() == models.SHAPES["unknown"]


def test_every_model_is_drawn_but_those_with_a_limit_that_the_row_names() -> None:
    limits = {name: model["limit"] for name, model in models.SHAPES["models"].items() if "limit" in model}
    assert {name: found.not_drawn for name, found in footprints().items() if found.not_drawn} == limits


def test_a_row_whose_shapes_nobody_verified_has_a_sign() -> None:
    rows = {row.split("`")[1]: row for row in written_table().splitlines() if row.startswith("| `")}
    assert rows.keys() == footprints().keys()
    for name, row in rows.items():
        assert (SIGN in row) == bool(models.unverified(name)) == bool(footprints()[name].unverified), name


def test_a_drawn_row_says_how_the_model_fits_each_card() -> None:
    for row in written_table().splitlines():
        if row.startswith("| `") and "not drawn" not in row:
            cells = [cell.strip() for cell in row.split("|")]
            assert set(cells[6 : 6 + len(CARDS_GB)]) <= {"as it is", "8-bit", "offload", "both", "no"}, row


@pytest.mark.slow
def test_a_model_goes_through_the_tool_as_its_row_says() -> None:
    name = "flux.1-schnell"
    found, kept = footprint(name), footprints()[name]
    assert found["flop_per_step"] == kept.flop_per_step
    assert found["weights"] == kept.weights
    assert found["activations"] == kept.activations


@pytest.mark.apart
def test_the_command_reaches_its_processes() -> None:
    """A spawned process imports nothing of `__main__.py`, so what it is given must lie elsewhere."""
    name, reason = next(iter(models.SHAPES["unknown"].items()))
    command = [sys.executable, "-m", "tools.full_size", "--print", "--processes", "1", name]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[0]) == {name: {"unknown": reason}}


def test_flop_and_peak_of_an_operation_are_counted() -> None:
    with drawing() as drawn:
        left = torch.empty(64, 128, device=DEVICE, dtype=torch.bfloat16)
        right = torch.empty(128, 32, device=DEVICE, dtype=torch.bfloat16)
        made = left @ right
        attended = torch.nn.functional.scaled_dot_product_attention(*[left[None, None]] * 3)
    assert drawn.flop == {0: 2 * 64 * 128 * 32 + 4 * 64 * 64 * 128}
    assert drawn.held == sum(tensor.nbytes for tensor in (left, right, made, attended))
    assert drawn.peaks == {"before": drawn.held}


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        (lambda device: device.sum().item(), "wait"),
        (lambda device: device.cpu(), "wait"),
        (lambda device: device.nonzero(), "wait"),
        (lambda device: torch.ones(3).to(DEVICE), "wait"),
        (lambda device: torch.tensor([device[0, 0]]), "wait"),
        (lambda device: device @ device.float(), "dtypes"),
    ],
    ids=["item", "cpu", "nonzero", "to the device", "tensor of a value", "dtypes"],
)
def test_an_operation_that_waits_or_mixes_is_found(operation: object, kind: str) -> None:
    assert callable(operation)
    with drawing() as drawn:
        device = torch.empty(4, 4, device=DEVICE, dtype=torch.bfloat16)
        try:
            operation(device)
        except RuntimeError:
            assert kind == "dtypes"
    assert kind in {finding.kind for finding in drawn.findings}


def test_a_mask_of_a_prompt_selects_as_many_rows_as_it_has_ones() -> None:
    with drawing() as drawn:
        mask = on_device_with_values(torch.tensor([[True, True, False], [True, False, False]]))
        embeddings = torch.empty(2, 3, 8, device=DEVICE)
        assert embeddings[mask].shape == (3, 8)
        assert mask.sum(dim=1).tolist() == [2, 1]
    assert {finding.kind for finding in drawn.findings} == {"wait"}


def test_a_step_ends_once_though_a_copy_of_the_scheduler_steps_too() -> None:
    class Pipe:
        scheduler = FlowMatchEulerDiscreteScheduler()
        transformer = torch.nn.Identity()

    pipe: Any = Pipe()
    with drawing() as drawn:
        follow(pipe, drawn)
        copied = copy.deepcopy(pipe.scheduler)
        for scheduler in (pipe.scheduler, copied):
            scheduler.set_timesteps(2)
        for step in range(2):
            sample = pipe.transformer(torch.zeros(1))
            for scheduler in (pipe.scheduler, copied):
                scheduler.step(sample, scheduler.timesteps[step], sample)
    assert drawn.steps == 2


def test_a_network_without_data_is_converted() -> None:
    vae = models.to_device(AutoencoderKL(block_out_channels=(8,), norm_num_groups=1), torch.bfloat16)
    with drawing() as drawn:
        vae.to(dtype=torch.float32)
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}
    assert drawn.held == sum(parameter.nbytes for parameter in vae.parameters())


def test_values_copied_to_the_device_are_read_back_as_they_were() -> None:
    with drawing() as drawn:
        timesteps = torch.tensor([999.0, 500.0]).to(DEVICE)
        assert [timestep.item() for timestep in timesteps / 1000] == pytest.approx([0.999, 0.5])
        assert (timesteps == 500.0).nonzero().tolist() == [[1]]
    assert drawn.findings
