"""The tool that draws models at full size without data, and its table."""

from __future__ import annotations

import pytest
import torch

from cache_dit_serving.config.footprints import footprints
from tools.full_size.dataless import DEVICE, drawing
from tools.full_size.measure import drawing_of, footprint
from tools.full_size.table import table, written_table


def test_the_table_is_that_of_the_footprints() -> None:
    assert written_table() == table()


def test_a_model_goes_through_the_tool_as_its_row_says() -> None:
    name = "flux.1-schnell"
    sizes = footprint(name)
    assert sizes.pop("not_drawn")
    kept = footprints()[name]
    found = sizes | drawing_of(name)
    assert found["flop_per_step"] == kept.flop_per_step
    assert found["weights"] == kept.weights
    assert found["activations"] == kept.activations


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


def test_values_copied_to_the_device_are_read_back_as_they_were() -> None:
    with drawing() as drawn:
        timesteps = torch.tensor([999.0, 500.0]).to(DEVICE)
        assert [timestep.item() for timestep in timesteps / 1000] == pytest.approx([0.999, 0.5])
        assert (timesteps == 500.0).nonzero().tolist() == [[1]]
    assert drawn.findings
