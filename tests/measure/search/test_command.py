"""The command itself: its flags, its help, and Ctrl-C."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from cache_dit_serving.cli import tune
from cache_dit_serving.cli.drawing import fields_of
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.measure.load.source import read_prompts
from cache_dit_serving.measure.search.prompt_lists import own_prompts, split
from tests.support.forked import environment, warm_process
from tests.support.waiting import wait_until


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Text of the error that a command line ends with."""
    with pytest.raises(SystemExit) as ended:
        tune.main(words)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--prompts", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--budget", "20"], "write it as 90s, 20m or 1.5h"),
        (["--trials", "0"], "no number of at least 1"),
        (["--resume"], "holds no search"),
        (["--triels", "4"], "did you mean --trials?"),
    ],
)
def test_a_mistake_is_refused_with_the_remedy_before_a_model_loads(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in said(capsys, *words)


def test_another_model_without_prompts_gets_those_of_bench() -> None:
    flags = tune.parser().parse_args(["--url", "http://gpu-1:3000"])
    options = tune.options_of(flags, None)
    assert list(options.prompts) == read_prompts(None)
    assert len(options.prompts) == 200
    assert options.prompts_are.startswith("the 200 of bench")


def test_a_file_of_one_prompt_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a red apple\n\na red apple\n")
    assert "has 1 prompts; write at least two" in said(capsys, "--prompts", str(tmp_path / "one.txt"))


def test_fields_are_read_as_json_or_text() -> None:
    assert fields_of(["width=512", "scheduler=unipc", "tiling=true"]) == {
        "width": 512,
        "scheduler": "unipc",
        "tiling": True,
    }
    for text in ("width", "seed=3", "cache={}", "prompt=a"):
        with pytest.raises(ConfigError, match="--field"):
            fields_of([text])


def test_durations_have_units() -> None:
    assert [tune.seconds(text) for text in ("90s", "20m", "1.5h")] == [90, 1200, 5400]


def test_a_third_of_the_prompts_is_unseen_and_the_same_each_time() -> None:
    searched, unseen = split(own_prompts())
    assert (len(searched), len(unseen)) == (27, 13)
    assert not set(searched) & set(unseen)
    assert split(own_prompts()) == (searched, unseen)
    assert [len(part) for part in split(["a", "b"])] == [1, 1]


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tune.main(["--help"])
    text = capsys.readouterr().out
    assert text.count("    cache-dit-serving tune ") >= 4
    assert "tuned.yaml" in text


def test_ctrl_c_writes_the_report_of_what_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    words = ["tune", "--outputs", "4", "--unseen", "4", "--field", "num_inference_steps=4", "-o", str(folder)]
    printed, errors = tmp_path / "printed", tmp_path / "errors"
    running = warm_process().fork(command=words, environ=environment(), cwd=tmp_path, log=printed, errors=errors)
    samples = folder / "samples.jsonl"
    wait_until(lambda: samples.exists() and samples.stat().st_size > 0, 240, errors.read_text)
    running.send_signal(signal.SIGINT)
    assert running.wait(120) == 130, errors.read_text()
    assert "the report follows" in errors.read_text()
    assert str(folder / "report.html") in printed.read_text()
    assert (folder / "report.md").read_text().splitlines()[0]
