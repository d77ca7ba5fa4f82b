"""Footprints of the configurations' models, and the advice that they give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cache_dit_serving.config.catalog import catalog, config_names
from cache_dit_serving.config.footprints import (
    WAYS,
    Footprint,
    Way,
    footprint_of,
    footprints,
    unknown_footprints,
)

GB = 10**9
SMALL = Footprint(
    name="small",
    width=1024,
    height=1024,
    frames=1,
    steps=28,
    dtype="bfloat16",
    parameters=15 * GB,
    weights={"transformer": 20 * GB, "text_encoder": 9 * GB, "vae": GB},
    eight_bit={"transformer": 11 * GB},
    activations={"denoise": 2 * GB, "decode": 4 * GB},
)


def test_each_configuration_has_a_footprint_or_a_reason() -> None:
    assert not footprints().keys() & unknown_footprints().keys()
    assert sorted(footprints().keys() | unknown_footprints().keys()) == config_names()
    assert all(unknown_footprints().values())


def test_the_number_of_parameters_is_the_configurations() -> None:
    declared = {entry.name: entry.about.parameters for entry in catalog()}
    for name, found in footprints().items():
        billions = declared[name]
        assert billions is not None, name
        rounding = 0.5 if billions == int(billions) else 0.05
        assert found.parameters / 1e9 == pytest.approx(billions, abs=0.06 * billions + rounding), name


@pytest.mark.parametrize(
    ("way", "gigabytes"),
    list(zip(WAYS, (34, 25, 22, 13), strict=True)),
    ids=["as it is", "8-bit", "offload", "both"],
)
def test_the_peak_counts_the_components_on_the_card_and_the_largest_activations(way: Way, gigabytes: int) -> None:
    assert SMALL.peak_bytes(way) == gigabytes * GB


@pytest.mark.parametrize(
    ("card", "way"),
    [(48, Way()), (32, Way(eight_bit=True)), (25, Way(offload=True)), (16, Way(True, True)), (12, None)],
)
def test_the_fastest_way_that_fits_is_advised(card: int, way: Way | None) -> None:
    assert SMALL.fitting(card * GB) == way


def test_the_advice_names_the_settings() -> None:
    assert SMALL.advice(16 * GB) == (
        "By its computed footprint, small at 1024 x 1024 fits on this device with quantize.quant_type: "
        "float8_weight_only (or int8_weight_only) and model.offload: model (13 GB)."
    )
    assert replace(SMALL, frames=81).advice(12 * GB) == (
        "By its computed footprint, small at 1024 x 1024 x 81 frames needs 13 GB at least, with 8-bit weights and "
        "offload."
    )
    assert SMALL.advice(80 * GB) == "By its computed footprint, small at 1024 x 1024 fits on this device (34 GB)."


def test_the_advice_says_which_shapes_nobody_verified() -> None:
    assert (
        replace(SMALL, unverified=("vae",))
        .advice(80 * GB)
        .startswith("By its computed footprint (shapes of vae unverified), small at")
    )


def test_a_footprint_is_found_by_hub_id_without_the_hub(tmp_path: Path) -> None:
    found = footprint_of("black-forest-labs/FLUX.1-dev")
    assert found is not None
    assert found.name == "flux"
    assert footprint_of("somebody/else") is None
    assert footprint_of(str(tmp_path)) is None
