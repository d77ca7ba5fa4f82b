"""Verdicts of real functions and real addresses, and what happens where there is none."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cache_dit_serving.config.safety import SafetySettings
from cache_dit_serving.config.settings import PreviewSettings, Settings
from cache_dit_serving.safety.check import CHECKS_AT_ONCE, SafetyCheck
from cache_dit_serving.safety.verdict import CheckFailed, Verdict
from cache_dit_serving.supervisor import safety_or_exit
from tests.support.safety_server import KEY, SafetyServer, safety_server
from tests.support.server import ROOT
from tests.support.waiting import wait_until

NEVER = threading.Event()


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


async def coroutine(subject: Mapping[str, Any]) -> Any:
    """A check that no thread can call."""


def by_word(subject: Mapping[str, Any]) -> Any:
    """A check of an operator."""
    match subject["texts"]["prompt"]:
        case "hang":
            NEVER.wait()
        case "raise":
            raise KeyError("a bug of the operator's")
        case "exit":
            raise SystemExit
        case "unprintable":
            raise Unprintable
        case "file":
            raise ValueError(str(subject["texts"]) + "file" * 1_000_000)
        case "nothing":
            return None
        case "number":
            return {"verdict": "refuse", "reason": 7}
    return {"verdict": "refuse", "reason": "so\x1b[31m\n  it " + "is" * 200, "more": 1}


def function(**settings: Any) -> SafetyCheck:
    return SafetyCheck(SafetySettings(check=f"{__name__}:by_word", **settings))


def subject(prompt: str, **more: Any) -> dict[str, Any]:
    return {"subject": "prompt", "request_id": "1", "caller": "", "texts": {"prompt": prompt}, **more}


def _listens(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def served() -> Iterator[SafetyServer]:
    with safety_server() as running:
        yield running


def test_a_reason_is_one_short_line() -> None:
    verdict = function().ask(subject("any"))
    assert verdict.decision == "refuse"
    assert verdict.reason.startswith("so [31m it isis")
    assert len(verdict.reason) == 200


@pytest.mark.parametrize("prompt", ["raise", "exit", "unprintable", "file", "nothing", "number"])
def test_a_function_without_a_verdict_has_failed(prompt: str) -> None:
    check = function(timeout_s=60)
    for _ in range(CHECKS_AT_ONCE + 1):  # none of the threads ends by it
        with pytest.raises(CheckFailed) as failed:
            check.ask(subject(prompt))
        assert len(str(failed.value)) < 400


def test_functions_that_hang_are_given_up_and_do_not_grow_in_number() -> None:
    check = function(timeout_s=0.2)
    for _ in range(CHECKS_AT_ONCE):
        with pytest.raises(CheckFailed, match=r"no answer within 0\.2 s"):
            asyncio.run(check.asked(subject("hang")))
    with pytest.raises(CheckFailed):  # no thread is free
        check.ask(subject("any"))
    NEVER.set()


def test_an_address_gets_the_key_and_no_file_unless_asked(served: SafetyServer) -> None:
    output = subject("a cat", file=b"png") | {"subject": "output"}
    assert SafetyCheck(SafetySettings(check=served.address, key=KEY)).ask(output) == Verdict("allow", "not drawn here")
    assert served.keys == {f"Bearer {KEY}"}
    assert "file" not in served.bodies[0]
    SafetyCheck(SafetySettings(check=served.address, send_files=True)).ask(output)
    assert served.bodies[1]["file"] == "cG5n"
    assert None in served.keys


@pytest.mark.parametrize("word", ["broken", "redirect", "no-json", "no-verdict", "long", "bomb", "slow"])
def test_an_address_without_a_verdict_has_failed(served: SafetyServer, word: str) -> None:
    with pytest.raises(CheckFailed):
        SafetyCheck(SafetySettings(check=served.address, timeout_s=0.5)).ask(subject(word))
    assert served.redirected == 0


def test_nothing_that_listens_has_failed() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with pytest.raises(CheckFailed):
            SafetyCheck(SafetySettings(check=address)).ask(subject("a cat"))


def test_the_server_of_the_documentation_is_a_check(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "safety.md").read_text(encoding="utf-8")
    _, code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "safety_server.py").write_text(code)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    words = [sys.executable, str(tmp_path / "safety_server.py"), str(port)]
    process = subprocess.Popen(words, env=os.environ | {"KEY": KEY}, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _listens(port), 120)
        check = SafetyCheck(SafetySettings(check=f"http://127.0.0.1:{port}", key=KEY))
        assert check.ask(subject("a cat")).decision == "allow"
        assert check.ask(subject("a forbidden cat")) == Verdict("refuse", "that word is not drawn here")
        with pytest.raises(CheckFailed, match="401"):
            SafetyCheck(SafetySettings(check=f"http://127.0.0.1:{port}", key="wrong")).ask(subject("a cat"))
    finally:
        process.kill()
        process.wait()


def test_the_function_of_the_documentation_is_a_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _ = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "safety.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_checks.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    check = SafetyCheck(SafetySettings(check="my_checks:check"))
    assert [check.ask(subject(text)).decision for text in ("a cat", "forbidden")] == ["allow", "refuse"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:check", "no_such_module cannot be imported"),
        ("json:no_such_function", "json has no function no_such_function"),
        (f"{__name__}:coroutine", "coroutine is a coroutine function"),
    ],
)
def test_a_function_that_is_not_there_stops_the_start(
    name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        safety_or_exit(SafetySettings(check=name))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"check": "no colon"},
        {"check": "ftp://example.org"},
        {"check": "https://user@example.org/"},
        {"timeout_s": 3},
        {"check": "json:loads", "key": "secret"},
        {"check": "json:loads", "send_files": True},
        {"check": "http://localhost:1", "send_files": True, "subjects": ["prompt"]},
        {"check": "json:loads", "subjects": []},
    ],
)
def test_a_setting_that_is_wrong_or_without_effect_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SafetySettings.model_validate(settings)


def test_previews_by_themselves_contradict_the_check_of_outputs() -> None:
    with pytest.raises(ValidationError, match=r"previews\.every has no effect with safety\.check"):
        Settings(previews=PreviewSettings(every=2), safety=SafetySettings(check="json:loads"))
    Settings(previews=PreviewSettings(every=2), safety=SafetySettings(check="json:loads", subjects=("prompt",)))


def test_the_key_is_not_shown() -> None:
    assert KEY not in repr(SafetySettings(check="http://localhost:1", key=KEY))
