"""Whatever ran before: the picture of a request is that of a process which never saw other settings."""

from __future__ import annotations

import base64
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.forked import environment, warm_process
from tests.support.fresh import BASE, CASES, PROMPT, SEED, STEPS
from tests.support.server import ROOT, Server

pytestmark = pytest.mark.slow

OFF = {"enable_taylorseer": False, "enable_foca": False, "enable_dmd": False}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("fresh")
    log, module = folder / "log", "tests.support.fresh"
    drawing = warm_process().fork(module=module, command=[str(folder)], environ=environment(), cwd=ROOT, log=log)
    assert drawing.wait(600) == 0, log.read_text()
    return {file.stem: np.load(file) for file in sorted(Path(folder).glob("*.npy"))}


def asked(server: Server, name: str, again: dict[str, Any] | None = None) -> dict[str, Any]:
    """The answer to a request of this case; `again` are the settings that an answer gave back."""
    settings, calibrator, arguments = CASES[name]
    cache: dict[str, Any] = {"enabled": False}
    if settings is not None:
        cache = {"cache_type": "DBCache", **BASE, **OFF, **settings, **calibrator}
        if "steps_computation_mask" in settings:  # which would have no effect, as the equal pictures show
            del cache["max_warmup_steps"]
        if settings.get("steps_computation_policy") == "static":
            del cache["residual_diff_threshold"]
    if again is not None:
        cache, arguments = again, {"speed": "fast", **arguments}
    body = {"prompt": PROMPT, "seed": SEED, "num_inference_steps": STEPS, "cache": cache, **arguments}
    response = server.post("/generate", json=body)
    assert response.status_code == 200, f"{name}: {response.text}"
    answer: dict[str, Any] = response.json()
    return answer


def pixels(answer: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))))


@pytest.fixture(scope="module")
def in_turn(server: Server) -> list[tuple[str, dict[str, Any]]]:
    """Each case twice, with other neighbours each time: its name and its answer, in the order of the requests.

    The second time, its cache is asked for by the settings in its first answer.
    """
    first, second = (random.Random(seed).sample(list(CASES), len(CASES)) for seed in range(2))
    answers = {name: asked(server, name) for name in first}
    given_back = {name: answers[name]["cache"]["settings"] if CASES[name][0] is not None else None for name in CASES}
    return [*answers.items(), *((name, asked(server, name, given_back[name])) for name in second)]


def test_settings_of_earlier_requests_leave_no_trace(
    in_turn: list[tuple[str, dict[str, Any]]], fresh: dict[str, Any]
) -> None:
    names = [name for name, _ in in_turn]
    for name, answer in in_turn:
        assert np.array_equal(pixels(answer), fresh[name]), f"{name} differs in the order {names}"
        assert answer["cache"]["executed_steps"] == answer["cache"]["steps"] == STEPS
        assert answer["cache"]["engaged"] == (CASES[name][0] is not None)


def test_the_cases_differ_from_each_other(fresh: dict[str, Any]) -> None:
    # Or equal pictures above would prove nothing.
    distinct = {picture.tobytes() for picture in fresh.values()}
    assert len(distinct) == len(CASES)


def test_the_settings_of_an_answer_draw_it_again(in_turn: list[tuple[str, dict[str, Any]]]) -> None:
    first, again = dict(in_turn[: len(CASES)]), dict(in_turn[len(CASES) :])
    for name, (settings, _, _) in CASES.items():
        if settings is not None:
            assert again[name]["cache"]["settings_hash"] == first[name]["cache"]["settings_hash"], name
            assert np.array_equal(pixels(again[name]), pixels(first[name])), name
