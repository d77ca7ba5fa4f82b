"""`cache-dit-serving generate`: what it draws is what the server draws, in files; and what it refuses."""

from __future__ import annotations

import json
import logging
import os
import pty
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache_dit_serving.cli import generate
from cache_dit_serving.cli.generate_flags import check_beforehand
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.config.variables import CONFIG_VARIABLE
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.answers import pixels
from tests.support.forked import environment, warm_process
from tests.support.images import base64_of
from tests.support.server import Server

pytestmark = pytest.mark.slow

PROMPT = "a red apple on a blue background"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A working directory for the command in this process."""
    logger = logging.getLogger("cache_dit_serving")
    level = logger.level
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    logger.setLevel(level)  # which the command raises


def test_the_file_is_the_servers_picture(server: Server, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main([PROMPT, "--seed", "7", "--steps", "8", "--speed", "fast", "-o", "made"]) == 0
    (file,) = capsys.readouterr().out.split()
    assert file == "made/a-red-apple-on-a-blue-background-7.png"
    answer = server.generate(prompt=PROMPT, seed=7, num_inference_steps=8, speed="fast").json()
    assert np.array_equal(np.asarray(Image.open(here / file)), pixels(answer["images"][0]))


def test_pictures_in_several_out_and_their_answer(
    server: Server, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (96, 96), "green").save(here / "green.png")
    flags = "--image green.png --strength 0.5 --seed 3 --num-images 2 --steps 8 -o made/x.webp"
    assert generate.main([PROMPT, *flags.split(), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["files"] == ["made/x-3.webp", "made/x-4.webp"]
    assert answer["seeds"] == [3, 4]
    assert "images" not in answer
    green = base64_of((here / "green.png").read_bytes())
    fields = {
        "image_urls": [green],
        "strength": 0.5,
        "seed": 3,
        "num_images": 2,
        "image_format": "webp",
        "num_inference_steps": 8,
    }
    served = server.generate(prompt=PROMPT, **fields).json()["images"]
    for file, picture in zip(answer["files"], served, strict=True):
        written = Image.open(here / file)
        assert written.format == "WEBP"
        assert np.array_equal(np.asarray(written), pixels(picture))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([PROMPT, "--steps", "0"], "--num-inference-steps: should be greater than or equal to 1"),
        ([PROMPT, "--image", "nowhere.png"], "nowhere.png cannot be read: No such file or directory"),
        ([PROMPT, "-o", "x.tiff"], "--output: .tiff is no format here; there are: jpg, png"),
        ([PROMPT, "--extra-args", "[1]"], "--extra-args: should be"),
        ([PROMPT, "--config", "nonsense"], "no configuration named 'nonsense'"),
        ([PROMPT, "--width", "17"], "width 17 is not a size this model takes; it takes 80, 96, 112"),
        (
            [PROMPT, "--config", "qwen-image", "--height", "32"],
            "height 32 is not a size this model takes; it",
        ),
        ([PROMPT, "-o", "x.mp4"], "--output: this model makes png, jpeg, webp, not mp4"),
        ([PROMPT, "--config", "wan2.1-t2v", "-o", "x.jpg"], "--output: this model makes mp4, webp, gif, not jpg"),
        ([PROMPT, "--config", "stable-audio-open-1.0", "-o", "x.png"], "--output: this model makes wav, flac, not png"),
        ([PROMPT, "--steps", "101"], "101 steps are more than the 100 this server takes"),
        ([PROMPT, "--num-images", "11"], "num_images is 11; this server draws at most 10 in one request"),
        (["x" * 10_001], "prompt has 10,001 characters; this server takes at most 10,000"),
        ([], 'say what to draw: cache-dit-serving generate "a red apple"'),
        (["a", "red", "apple"], "one argument too many: red apple; put quotes around a text of several words"),
        ([PROMPT, "--sede", "7"], "there is no flag --sede; did you mean --seed?"),
        ([PROMPT, "--num-image=3"], "there is no flag --num-image; did you mean --num-images?"),
    ],
)
def test_a_mistake_is_named_before_the_model_is_loaded(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    def drawn(*_: object) -> None:
        raise AssertionError("the model would be loaded")

    monkeypatch.setattr(generate, "_drawn", drawn)
    with pytest.raises(SystemExit) as ended:
        generate.main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(here.iterdir())


def test_what_only_the_model_knows_is_named_after_it_is_loaded(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        generate.main([PROMPT, "--extra-args", '{"nonsense": 1}'])
    assert ended.value.code == 2
    assert "nonsense" in capsys.readouterr().err
    assert not list(here.iterdir())


def test_a_size_that_is_adjusted_is_not_refused_before() -> None:
    settings = load_settings({CONFIG_VARIABLE: "embedded", "CACHE_DIT_SERVING__SERVER__UNSUPPORTED_FIELDS": "warn"})
    check_beforehand(GenerateRequest(prompt=PROMPT, width=100), settings, "")
    strict = load_settings({CONFIG_VARIABLE: "embedded"})
    with pytest.raises(InvalidRequest, match="width 100 is not a size"):
        check_beforehand(GenerateRequest(prompt=PROMPT, width=100), strict, "")


def test_a_model_that_cannot_be_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    # As in a process of the command's own: nobody takes the log, and Python writes it to stderr.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert generate.main([PROMPT, "--model-path", "/nowhere"]) == 1
    told = capsys.readouterr().err
    assert told.count("the model's path is neither a folder or file on the server nor a hub id") == 1
    assert "Traceback" not in told
    assert not list(here.iterdir())


def test_it_can_be_stopped_and_shows_its_steps_on_a_terminal(tmp_path: Path) -> None:
    words = ["generate", PROMPT, "--num-images", "8", "--steps", "100", "--speed", "lossless"]
    screen, terminal = pty.openpty()
    log = Path(os.ttyname(terminal))
    running = warm_process().fork(command=words, environ=environment(), cwd=tmp_path, log=log)
    told = os.read(screen, 1024)
    os.close(terminal)  # the command has it open
    while b"step 2 of 800" not in told:
        told += os.read(screen, 1024)
    running.send_signal(signal.SIGINT)
    while not told.endswith(b"stopped\r\n"):
        told += os.read(screen, 1024)
    assert running.wait(60) == 130
    os.close(screen)
    assert not list(tmp_path.iterdir())
