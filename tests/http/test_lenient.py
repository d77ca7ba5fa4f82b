"""`X-Unsupported-Fields: warn`: a request read as clients of `cache_dit.serve` mean it."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
import requests
from PIL import Image

from tests.support.answers import error
from tests.support.server import Server

HEADER = "X-Unsupported-Fields"
DRAW = {"prompt": "a red apple on a blue background", "num_inference_steps": 4, "seed": 3}


def ask(server: Server, mode: str, **fields: Any) -> requests.Response:
    return server.post("/generate", json=DRAW | fields, headers={HEADER: mode})


@pytest.mark.parametrize(
    "fields",
    [
        {"width": "96", "height": "96"},
        {"width": 96.0, "num_inference_steps": "4"},
        {"include_stats": "false", "num_images": "1"},
        {"seed": "3"},
        {"output_dir": ""},
    ],
)
def test_scalars_are_read_as_the_type_of_their_field(server: Server, fields: dict[str, Any]) -> None:
    expected = server.post("/generate", json=DRAW).json()
    answer = ask(server, "warn", **fields)
    assert answer.status_code == 200, answer.text
    assert answer.json()["images"] == expected["images"]
    assert answer.json()["warnings"] == []
    if fields != {"output_dir": ""}:
        error(ask(server, "refuse", **fields), 400)


def test_a_whole_number_may_have_a_fraction_of_zero(server: Server) -> None:
    expected = server.post("/generate", json=DRAW).json()
    answer = ask(server, "refuse", seed=3.0, width=96.0, num_inference_steps=4.0)
    assert answer.json()["images"] == expected["images"]
    assert error(ask(server, "refuse", seed=3.5), 400)["param"] == "seed"


def test_a_seed_beyond_the_greatest_is_taken_modulo_and_reported(server: Server) -> None:
    for seed in (2**53 + 3, str(2**53 + 3)):
        answer = ask(server, "warn", seed=seed).json()
        assert answer["seeds"] == [3]
        assert [(warning["param"], warning["code"]) for warning in answer["warnings"]] == [("seed", "adjusted")]
    assert error(ask(server, "refuse", seed=2**53), 400)["param"] == "seed"


def test_a_seed_of_minus_one_means_any(server: Server) -> None:
    first, second = (ask(server, "warn", seed=-1).json() for _ in range(2))
    assert first["seeds"] != second["seeds"]
    assert [(warning["param"], warning["code"]) for warning in first["warnings"]] == [("seed", "adjusted")]
    assert error(ask(server, "warn", seed=-2), 400)["param"] == "seed"


@pytest.mark.parametrize("spelt", ["./apples/red", "apples/red/", "apples//red", "./apples/./red/"])
def test_a_folder_is_the_same_however_it_is_spelt(server: Server, spelt: str) -> None:
    answer = ask(server, "warn", output_format="path", output_dir=spelt).json()
    assert answer["images"][0].startswith(str(server.outputs / "apples" / "red"))


@pytest.mark.parametrize("folder", ["..", "../x", "a/../../x", "/etc", ".hidden"])
def test_a_folder_outside_stays_refused(server: Server, folder: str) -> None:
    assert error(ask(server, "warn", output_format="path", output_dir=folder), 400)["param"] == "output_dir"


@pytest.mark.parametrize(
    "fields", [{"width": "wide"}, {"width": "9" * 400}, {"width": True}, {"prompt": 7}, {"seed": 1.5}]
)
def test_what_makes_no_sense_stays_refused(server: Server, fields: dict[str, Any]) -> None:
    assert error(ask(server, "warn", **fields), 400)["param"] in fields


def test_a_request_chooses_for_itself(server: Server) -> None:
    answer = ask(server, "warn", guidance_scale=7.5, width=90).json()
    assert {(warning["param"], warning["code"]) for warning in answer["warnings"]} == {
        ("guidance_scale", "unsupported_field"),
        ("width", "adjusted"),
    }
    assert error(ask(server, "refuse", guidance_scale=7.5), 400)["code"] == "unsupported_field"
    message = error(ask(server, "ignore"), 400)["message"]
    assert message == "the header X-Unsupported-Fields is 'ignore'; send refuse or warn"


def test_the_picture_remembers_what_was_said(server: Server) -> None:
    answer = ask(server, "warn", guidance_scale=7.5).json()
    picture: Any = Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))
    assert json.loads(picture.text["warnings"]) == answer["warnings"]
    again = server.post("/generate", json=json.loads(picture.text["parameters"])).json()
    silent: Any = Image.open(io.BytesIO(base64.b64decode(again["images"][0])))
    assert "warnings" not in silent.text
    assert silent.tobytes() == picture.tobytes()


def test_a_comparison_reports_too(server: Server) -> None:
    answer = server.post(
        "/compare", json=DRAW | {"guidance_scale": 7.5, "num_inference_steps": "6"}, headers={HEADER: "warn"}
    )
    assert [warning["param"] for warning in answer.json()["warnings"]] == ["guidance_scale"]
