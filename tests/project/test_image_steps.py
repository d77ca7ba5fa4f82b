"""The times and sizes of the steps of the image's build, from buildah's lines."""

from __future__ import annotations

import subprocess

import pytest

from tools.image.steps import Step, steps, table, timed_run

LINES = [
    "INFO: STEP 1/4: FROM python:3.11-slim AS base-container\n",
    "INFO: STEP 2/4: ENV LANG=C.UTF-8\n",
    "INFO: --> 1bdc07daa67\n",
    "INFO: STEP 3/4: RUN uv pip install -r requirements.txt\n",
    "INFO:  + torch==2.13.0\n",
    "INFO: STEP 4/4: COPY . ./\n",
    "INFO: COMMIT localhost/server:check\n",
    "INFO: Storing signatures\n",
]
BUILT = [
    Step("FROM python:3.11-slim AS base-container", 1),
    Step("ENV LANG=C.UTF-8", 2),
    Step("RUN uv pip install -r requirements.txt", 2),
    Step("COPY . ./", 1),
]


def test_a_step_lasts_until_the_next_one_or_the_commit() -> None:
    seconds = iter(range(10, 20))
    assert steps(LINES, lambda: next(seconds)) == [
        Step("FROM python:3.11-slim AS base-container", 1),
        Step("ENV LANG=C.UTF-8", 1),
        Step("RUN uv pip install -r requirements.txt", 1),
        Step("COPY . ./", 1),
    ]


def test_steps_stand_beside_the_newest_layers_and_those_of_little_weight_are_left_out() -> None:
    base = [251_000_000, 0]
    assert table(BUILT, [*base, 0, 700_000_000, 100]) == [
        "| `ENV LANG=C.UTF-8` | 2 s | 0 MB |",
        "| `RUN uv pip install -r requirements.txt` | 2 s | 700 MB |",
        "| `COPY . ./` | 1 s | 0 MB |",
    ]
    quick = [Step(step.instruction, 0.5) for step in BUILT]
    assert table(quick, [*base, 0, 700_000_000, 100]) == ["| `RUN uv pip install -r requirements.txt` | 0 s | 700 MB |"]


def test_an_image_with_fewer_layers_than_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="2 layers for 3 steps"):
        table(BUILT, [251_000_000, 700_000_000])


def test_a_build_that_fails_is_an_error_after_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        timed_run(["sh", "-c", "echo STEP 1/1: FROM scratch; exit 3"], {"PATH": "/usr/bin:/bin"}, 60)
    assert capsys.readouterr().out == "STEP 1/1: FROM scratch\n"


def test_of_a_long_step_both_ends_are_shown_and_no_cell_ends_early() -> None:
    [row] = table([Step(f"RUN command -v uv || pip install uv {'-' * 200} -r all.txt", 9)], [0])
    assert row.startswith(r"| `RUN command -v uv \|\| pip install uv ---")
    assert row.endswith("- -r all.txt` | 9 s | 0 MB |")
    assert len(row) < 140
