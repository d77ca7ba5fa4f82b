"""Warnings of the last hour: which there are, how many, and what never stands in them."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator

import pytest

from cache_dit_serving.api.recent_warnings import KEPT_S, MOST, ONLY_A_VALUE, PACKAGE, VALUE, RecentWarnings
from tests.support.server import ROOT

SECRET = "/srv/models/secret sk-0123456789abcdef a red apple"
WORD = re.compile(r"[A-Za-z]{3}")
LOGGER = logging.getLogger(f"{PACKAGE}.jobs.watchdog")


class Clock:
    """A clock that stands still until it is set."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recent(clock: Clock) -> Iterator[RecentWarnings]:
    kept = RecentWarnings(clock)
    kept.listen()
    yield kept
    logging.getLogger(PACKAGE).removeHandler(kept)


def test_a_warning_tells_when_of_what_and_how_often(recent: RecentWarnings, clock: Clock) -> None:
    LOGGER.info("all is well")
    LOGGER.warning("the pipeline goes on again")
    logging.getLogger(PACKAGE).error("50 %% of %d", 7)
    clock.now += 60
    LOGGER.warning("the pipeline goes on again")
    later, other = recent.answer().warnings
    assert (later.level, later.subject, later.message, later.count) == (
        "WARNING",
        "jobs.watchdog",
        "the pipeline goes on again",
        2,
    )
    assert (later.first_at, later.last_at) == ("1970-01-12T13:46:40.000Z", "1970-01-12T13:47:40.000Z")
    assert (other.level, other.subject, other.message) == ("ERROR", "server", "50 % of …")


def test_no_value_exception_or_foreign_line_is_kept(recent: RecentWarnings) -> None:
    LOGGER.warning("job %s is not written: %r, in %.1f s", SECRET, SECRET, 0.5, extra={"more": SECRET})
    LOGGER.warning("%s", SECRET)
    LOGGER.warning("%(text)-8s of %(text)s", {"text": SECRET})
    try:
        raise ValueError(SECRET)
    except ValueError as error:
        LOGGER.exception("encoding failed", stack_info=True)
        LOGGER.error(error)
    logging.getLogger("diffusers").warning(SECRET)
    logging.getLogger("py.warnings").warning(SECRET)
    logging.getLogger(f"{PACKAGE}_other").warning(SECRET)
    answer = recent.answer()
    assert [(warning.level, warning.message) for warning in reversed(answer.warnings)] == [
        ("WARNING", "job … is not written: …, in … s"),
        ("WARNING", ONLY_A_VALUE),
        ("WARNING", "… of …"),
        ("ERROR", "encoding failed"),
        ("ERROR", ONLY_A_VALUE),
    ]
    assert not any(part in answer.model_dump_json() for part in ("/srv", "sk-0", "apple"))


def test_warnings_are_kept_for_an_hour_and_are_bounded(recent: RecentWarnings, clock: Clock) -> None:
    for number in range(MOST + 20):
        LOGGER.warning("number %s of kind " + str(number), SECRET)
    assert len(recent.answer().warnings) == MOST
    assert recent.answer().warnings[0].message == f"number … of kind {MOST + 19}"
    for _ in range(3):
        LOGGER.error("again and again")
    assert recent.answer().warnings[0].count == 3
    clock.now += KEPT_S + 1
    assert recent.answer().warnings == []
    LOGGER.error("again and again")
    assert [warning.count for warning in recent.answer().warnings] == [1]


def templates() -> dict[str, ast.expr]:
    """What this package's calls of `logging` write of warning and above, and by a level that they choose; by place."""
    calls = [
        (file.relative_to(ROOT), call)
        for file in (ROOT / "src").rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("warning", "error", "exception", "critical", "log")
        and "logger" in ast.unparse(call.func.value).lower()
    ]
    return {f"{file}:{call.lineno}": call.args[ast.unparse(call.func).endswith(".log")] for file, call in calls}


def test_every_line_of_the_package_is_a_template_with_words_that_its_source_holds() -> None:
    """What is put into a line otherwise (an f-string, a variable) would be shown; of a value alone nothing would."""
    written = templates()
    assert len(written) > 50
    assert [place for place, text in written.items() if not isinstance(text, ast.Constant)] == []
    wordless = {
        place: text.value
        for place, text in written.items()
        if isinstance(text, ast.Constant)
        and not WORD.search(VALUE.sub("", str(text.value)))
        and "/logs.py:" not in place  # `say_last`: nobody can ask a process that ends
    }
    assert wordless == {}
