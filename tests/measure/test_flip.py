"""FLIP in a process of its own: its figures are the package's, and the interpreter stays free."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache_dit_serving.measure.distances.flip import FlipEnded, FlipProcess, flip
from cache_dit_serving.measure.distances.pixels import Pixels
from tests.support.ctrl_c import interrupted
from tests.support.reference_pictures import PAIRS, smooth, with_noise

TOOL = Path(sys.executable).with_name("flip")


@pytest.fixture(scope="module")
def process() -> Iterator[FlipProcess]:
    with FlipProcess() as started:
        yield started


@pytest.mark.parametrize("name", PAIRS)
def test_flip_is_that_of_its_command_line_tool(name: str, process: FlipProcess, tmp_path: Path) -> None:
    ours, reference = ((255 * picture).round().astype(np.uint8) for picture in PAIRS[name])
    for file, picture in (("ours", ours), ("reference", reference)):
        Image.fromarray(picture).save(tmp_path / f"{file}.png")
    command = [str(TOOL), "-r", "reference.png", "-t", "ours.png", "-nexm", "-nerm"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120).stdout
    [mean] = re.findall(r"Mean: ([\d.]+)", told)
    assert process(ours, reference) == flip(ours, reference) == pytest.approx(float(mean), abs=1e-4)


def test_flip_of_equal_pictures_is_zero_and_of_black_and_white_high(process: FlipProcess) -> None:
    black, white = np.zeros((16, 16, 3)), np.ones((16, 16, 3))
    assert process(black, black) == pytest.approx(0, abs=1e-6)
    assert process(black, white) > 0.9


def test_flip_grows_with_noise(process: FlipProcess) -> None:
    picture = smooth(1, 40, 30)
    figures = [process(with_noise(picture, 2, sigma), picture) for sigma in (0.01, 0.05, 0.2)]
    assert figures == sorted(figures)


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 200, 3)])
def test_flip_takes_a_picture_of_any_size(shape: tuple[int, int, int], process: FlipProcess) -> None:
    picture = np.full(shape, 0.5)
    assert 0 < process(picture + 0.3, picture) < 1


def test_a_picture_with_values_that_are_not_finite_has_no_figure(process: FlipProcess) -> None:
    picture = np.full((4, 4, 3), 0.5)
    broken = picture.copy()
    broken[0, 0, 0] = np.nan
    assert np.isnan([process(broken, picture), process(picture, broken), flip(broken, picture)]).all()


def test_pictures_of_other_shapes_are_refused(process: FlipProcess) -> None:
    wide, high = np.zeros((4, 6, 3)), np.zeros((6, 4, 3))
    with pytest.raises(ValueError, match=r"\(4, 6, 3\) and \(6, 4, 3\)"):
        process(wide, high)
    assert process(wide, wide) == pytest.approx(0, abs=1e-6), "the process lives on"


def test_other_threads_run_while_flip_does(process: FlipProcess) -> None:
    picture: Pixels = smooth(1, 256, 256)
    done, turns = threading.Event(), 0

    def measure() -> None:
        try:
            process(with_noise(picture, 2, 0.1), picture)
        finally:
            done.set()

    thread = threading.Thread(target=measure)
    thread.start()
    while not done.wait(0.001):
        turns += 1
    thread.join()
    assert turns > 5, "one that holds the interpreter's lock gives none"


def test_a_process_that_ended_is_told() -> None:
    with FlipProcess() as process:
        os.kill(process.pid, 9)
        with pytest.raises(FlipEnded):
            process(np.zeros((64, 64, 3)), np.zeros((64, 64, 3)))


def test_the_process_has_no_secret_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIT_SERVING_TEST_SECRET", "hidden")
    with FlipProcess() as process:
        assert b"hidden" not in Path(f"/proc/{process.pid}/environ").read_bytes()


INTERRUPTED = """
import signal
import numpy as np
from cache_dit_serving.measure.distances.flip import FlipProcess
black, white = np.zeros((16, 16, 3)), np.ones((16, 16, 3))
got = []
signal.signal(signal.SIGINT, lambda number, frame: got.append(number))
with FlipProcess() as process:
    before = process(black, white)
    print("ready", flush=True)
    input()
    assert got == [signal.SIGINT]
    assert process(black, white) == before
print("measured after Ctrl-C", flush=True)
"""


def test_ctrl_c_at_the_terminal_does_not_reach_the_process() -> None:
    assert interrupted(INTERRUPTED, within_s=120) == ("measured after Ctrl-C\n", "")
