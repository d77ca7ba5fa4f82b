"""The format of the log."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest

from cache_dit_serving.logs import FORMAT_VARIABLE, JsonFormatter, TextFormatter, note, noted, say_last

HOSTILE = "a\nFAKE \r\x1b[2K\u2028\u202e\x85\ud800b"


def record(message: str, *values: object, failed: bool = False) -> logging.LogRecord:
    fault = None
    if failed:
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            fault = sys.exc_info()
    return logging.LogRecord("cache_dit_serving.api", logging.WARNING, "", 1, message, values, fault)


def test_a_line_of_text_says_when_where_and_for_which_request() -> None:
    with noted(request_id="abc", caller="ci"):
        line = TextFormatter("worker-1").format(record("%d done", 3))
    time, _, rest = line.partition(" ")
    assert time == json.loads(JsonFormatter("").format(record("")))["time"][:10] + time[10:]
    assert len(time) == len("2026-11-27T13:05:12.123+00:00")
    assert time.endswith("+00:00")
    assert rest == "WARNING worker-1 cache_dit_serving.api [abc]: 3 done"


def test_a_json_line_has_the_fields_of_its_request_and_of_itself() -> None:
    asked = record("answered")
    asked.status, asked.seconds = 200, 0.5
    with noted(request_id="abc", trace_id="0f", caller="", route="/generate"):
        line = json.loads(JsonFormatter("rank-0").format(asked))
    assert list(line) == [
        *("time", "level", "logger", "message", "process"),
        *("request_id", "trace_id", "route", "status", "seconds"),
    ]
    assert (line["process"], line["request_id"], line["status"], line["seconds"]) == ("rank-0", "abc", 200, 0.5)
    assert "request_id" not in json.loads(JsonFormatter("rank-0").format(asked))


@pytest.mark.parametrize("failed", [False, True])
def test_no_text_of_a_client_begins_a_line(failed: bool) -> None:
    text = TextFormatter("worker-1").format(record("%s", HOSTILE, failed=failed))
    first, *others = text.split("\n")
    assert "a\\nFAKE" in first
    assert all(line.startswith("    ") for line in others)
    assert bool(others) is failed
    assert text.replace("\n", "").isprintable()
    line = JsonFormatter("worker-1").format(record("%s", HOSTILE, failed=failed))
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["message"] == HOSTILE
    assert ("FAKE" in json.loads(line).get("exception", "")) is failed


def test_the_last_line_of_a_process_moves_no_cursor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(FORMAT_VARIABLE, raising=False)
    say_last("the class \x1b[2K\u202e\ndefaults: 3", "launcher")
    assert capsys.readouterr().err == "the class \\x1b[2K\\u202e\ndefaults: 3\n"


def test_fields_end_with_their_context() -> None:
    with noted(request_id="outer"):
        with noted(request_id="inner"):
            note(caller="ci")
        line = json.loads(JsonFormatter("").format(record("")))
    assert (line["request_id"], line.get("caller")) == ("outer", None)


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_start_that_fails_says_so_in_the_format_that_is_set(style: str) -> None:
    words = [sys.executable, "-m", "cache_dit_serving.serve", "--config", "embeded"]
    environ = os.environ | {FORMAT_VARIABLE: style}
    ended = subprocess.run(words, capture_output=True, text=True, timeout=180, check=False, env=environ)
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    said = json.loads(line)["message"] if style == "json" else line
    assert said.startswith("error: no configuration named 'embeded'")


PROGRAM = """
import logging, sys, threading, warnings
library = logging.getLogger("diffusers")
library.addHandler(logging.StreamHandler())
library.propagate = False
from cache_dit_serving.logs import claim_loggers, configure_logs
configure_logs("INFO", "text", "rank-0")  # a rank does not have its settings yet
configure_logs("INFO", "json", "worker-1")
late = logging.getLogger("cache_dit.late")
late.addHandler(logging.StreamHandler(sys.stdout))
late.propagate = False
claim_loggers()
library.warning("of a library")
late.warning("of a late one")
logging.getLogger("cache_dit_serving.api").info("ours")
logging.getLogger("circus").info("of no interest")
warnings.warn("old\\nname", DeprecationWarning)
from tqdm.auto import tqdm
from huggingface_hub.utils import tqdm as hub_tqdm
list(tqdm(range(3))), list(hub_tqdm(range(3)))
thread = threading.Thread(target=lambda: 1 / 0, name="drain")
thread.start(), thread.join()
raise SystemExit if len(sys.argv) > 1 else RuntimeError("two\\nlines")
"""


def test_libraries_warnings_and_uncaught_exceptions_are_lines_of_one_format() -> None:
    words = [sys.executable, "-W", "always", "-c", PROGRAM]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=180, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [(line["logger"], line["level"]) for line in lines] == [
        ("diffusers", "WARNING"),
        ("cache_dit.late", "WARNING"),
        ("cache_dit_serving.api", "INFO"),
        ("py.warnings", "WARNING"),
        ("cache_dit_serving", "ERROR"),
        ("cache_dit_serving", "CRITICAL"),
    ]
    assert "DeprecationWarning: old\nname" in lines[3]["message"]
    assert "the thread drain has ended" in lines[4]["message"]
    assert "ZeroDivisionError" in lines[4]["exception"]
    assert "RuntimeError: two\nlines" in lines[5]["exception"]
