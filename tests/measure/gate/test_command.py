"""The command itself on the embedded model: its exit statuses, its files, and Ctrl-C."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cache_dit_serving.cli import tune, verify
from cache_dit_serving.cli.drawing import Interruption
from cache_dit_serving.config.settings import EMBEDDED_MODEL, ModelSettings, Settings
from tests.support.forked import environment, warm_process
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def _log_level() -> Iterator[None]:
    """The command quietens the log of its process, which here is the tests'."""
    ours = logging.getLogger("cache_dit_serving")
    before = ours.level
    yield
    ours.setLevel(before)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("# three\na red apple on a blue background\na yellow star\n\na green leaf on a white background\n")
    return file


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--prompts", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--prompts", "one.txt"], "has 1 prompts; write at least two"),
        (["--floor", "likeness=.9"], "--floor likeness=.9: write MEASURE=VALUE or SPEED:MEASURE=VALUE"),
        (["--speeds", "high,fats"], "did you mean fast?"),
        (["--seeds", "0"], "no number of at least 1"),
        (["--field", "prompt=x"], "the command sets it itself"),
        (["--json", "nowhere/verify.json"], "its folder is missing"),
        (["embeded"], "embedded"),
        (["embedded", "--config", "flux"], "leave one out"),
        (["--flor", "ssim=.9"], "did you mean --floor?"),
    ],
)
def test_a_mistake_is_refused_in_one_line_before_a_model_loads(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.txt").write_text("a red apple\n")
    with pytest.raises(SystemExit) as ended:
        verify.main(words)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert expected in told
    assert told.startswith("error: ")


@pytest.mark.parametrize(
    ("words", "prompts", "seeds"),
    [
        ([], 12, [0, 1]),
        (["--seeds", "3"], 12, [0, 1, 2]),
        (["flux"], 12, [0, 1]),
        (["--outputs", "30"], 30, [0, 1]),
    ],
)
def test_without_a_file_twelve_prompts_are_drawn_with_every_seed(
    words: list[str], prompts: int, seeds: list[int]
) -> None:
    parsed = verify.parser().parse_args(words)
    model = parsed.configuration or EMBEDDED_MODEL
    cases, _ = verify.cases_of_flags(parsed, Settings(model=ModelSettings(path=model)))
    by_prompt: dict[str, list[int]] = {}
    for case in cases:
        by_prompt.setdefault(case.prompt, []).append(case.seed)
    assert len(by_prompt) == prompts
    assert sorted({case.seed for case in cases}) == seeds
    if parsed.outputs is None:
        assert all(sorted(drawn) == seeds for drawn in by_prompt.values())


def test_every_speed_of_the_embedded_model_holds_its_measured_figures(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", str(tmp_path / "verify.json"), "--junit", str(tmp_path / "verify.xml")]
    assert verify.main(["embedded", "--prompts", str(prompts), "--seeds", "1", *files]) == 0
    printed = capsys.readouterr().out
    assert "high, balanced, fast: every floor holds on 3 outputs." in printed
    assert "the configuration's measured worst deciles, less 3 dB" in printed
    tree = json.loads((tmp_path / "verify.json").read_text())
    assert [(each["speed"], each["steps"]) for each in tree["speeds"]] == [("high", 28), ("balanced", 28), ("fast", 10)]
    for each in tree["speeds"]:
        assert each["cached_steps"] > 0
        assert len(each["drawn"]) == 3
        assert all(output["cached_steps"] > 0 and output["psnr_db"] < 100 for output in each["drawn"])
    assert ElementTree.parse(tmp_path / "verify.xml").getroot().attrib["failures"] == "0"


@pytest.fixture(scope="module")
def failed() -> tuple[int, str]:
    """Status and text of a run in which `high` reuses nothing, `balanced` is as configured, and `fast` is broken."""
    caches = {
        "HIGH": {"residual_diff_threshold": 0.000001, "max_warmup_steps": 1},
        "FAST": {"Fn_compute_blocks": 1, "residual_diff_threshold": 1, "max_warmup_steps": 1},
    }
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        for speed, cache in caches.items():
            patch.setenv(f"CACHE_DIT_SERVING__SPEEDS__{speed}__CACHE", json.dumps(cache))
        status = verify.main(["--outputs", "2", "--floor", "ssim=.98"])
    return status, printed.getvalue()


def test_settings_that_break_the_picture_fail_by_the_speeds_name(failed: tuple[int, str]) -> None:
    status, printed = failed
    assert status == 1
    [miss] = [line for line in printed.splitlines() if "misses its floor" in line]
    assert miss.startswith("fast misses its floor: the worst decile of ssim is 0.")
    assert "seed " in miss


def test_a_cache_that_reuses_nothing_fails_though_its_outputs_are_equal(failed: tuple[int, str]) -> None:
    status, printed = failed
    assert status == 1
    assert "high reuses no step in 2 outputs." in printed.splitlines()


def test_a_speed_without_a_floor_is_a_mistake(prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        verify.main(["--prompts", str(prompts), "--field", "num_inference_steps=4", "--field", "width=80"])
    assert ended.value.code == 2
    assert "no floor; give one, such as --floor high:ssim=.95" in capsys.readouterr().err


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        verify.main(["--help"])
    text = capsys.readouterr().out
    assert text.count("    cache-dit-serving verify") >= 3
    assert "Exit status: 0 if all speeds hold" in text


class Interrupted(Interruption):
    """Ctrl-C of a user while the model loads."""

    def __call__(self) -> bool:
        return True


def test_ctrl_c_before_the_first_output_ends_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(verify, "Interruption", Interrupted)
    assert verify.main([]) == 130
    assert "stopped after no output; nothing is judged" in capsys.readouterr().err
    monkeypatch.setattr(tune, "Interruption", Interrupted)
    assert tune.main(["-o", str(tmp_path / "tuned")]) == 130
    assert "stopped before anything was measured" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_says_how_far_it_came(tmp_path: Path) -> None:
    printed, errors = tmp_path / "printed", tmp_path / "errors"
    words = ["verify", "--seeds", "20"]  # far more than 10 s, after which it says how far it came
    running = warm_process().fork(command=words, environ=environment(), cwd=tmp_path, log=printed, errors=errors)
    wait_until(lambda: errors.exists() and "of 960 outputs" in errors.read_text(), 240)  # an output is announced
    running.send_signal(signal.SIGINT)
    assert running.wait(120) == 130, errors.read_text()
    assert "of 960 outputs; nothing is judged" in errors.read_text()
    assert printed.read_text() == ""
