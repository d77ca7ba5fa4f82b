"""Warnings and errors that this process logged within the last hour, for its operator's page.

Only what this package wrote into its source is kept: the template of a line, without the values that go into it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from cache_dit_serving.schemas.answers import timestamp
from cache_dit_serving.schemas.log import LoggedWarning, LoggedWarnings

PACKAGE = "cache_dit_serving"
KEPT_S = 3600.0
"""Seconds for which a warning is kept after it came last."""
MOST = 100
"""Maximum different warnings; the one that came last the longest ago makes room."""
VALUE = re.compile(r"%(?:\(\w+\))?[-+ #0]*[\d*]*(?:\.[\d*]+)?[a-zA-Z]")
"""Place of a value in a template."""
ONLY_A_VALUE = "its text is in the server's log"
"""Message of a line that is one value."""
About = tuple[str, str, str]
"""Level, subject and message."""


@dataclass
class _Came:
    """Times of a warning, seconds since the epoch."""

    first: float
    last: float
    count: int = 1


class RecentWarnings(logging.Handler):
    """Handler that keeps the warnings of this package, for any thread."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        """
        Args:
            now: seconds since the epoch.
        """
        super().__init__(logging.WARNING)
        self._now = now
        self._came: dict[About, _Came] = {}
        """The one that came last is the last."""

    def listen(self) -> None:
        """Keep what is logged from now on."""
        logging.getLogger(PACKAGE).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record; under the handler's lock, as logging calls it."""
        if record.name.partition(".")[0] != PACKAGE:
            return
        about = record.levelname, record.name.removeprefix(PACKAGE).lstrip(".") or "server", _message(record.msg)
        now = self._now()
        came = self._came.pop(about, None)
        if came is None or came.last < now - KEPT_S:
            came = _Came(now, now)
        else:
            came.last, came.count = now, came.count + 1
        self._came[about] = came
        if len(self._came) > MOST:
            del self._came[next(iter(self._came))]

    def answer(self) -> LoggedWarnings:
        """Return the warnings of the last hour, latest first."""
        oldest = self._now() - KEPT_S
        self.acquire()
        try:
            kept = [(about, replace(came)) for about, came in self._came.items() if came.last >= oldest]
        finally:
            self.release()
        return LoggedWarnings(warnings=[_answer(about, came) for about, came in reversed(kept)])


def _answer(about: About, came: _Came) -> LoggedWarning:
    level, subject, message = about
    return LoggedWarning(
        level=level,
        subject=subject,
        message=message,
        count=came.count,
        first_at=timestamp(came.first),
        last_at=timestamp(came.last),
    )


def _message(template: object) -> str:
    """Return a template with a mark in place of each value."""
    if not isinstance(template, str):  # an exception, logged as it is
        return ONLY_A_VALUE
    text = VALUE.sub("…", template.replace("%%", "\0")).replace("\0", "%")
    return text if re.search(r"\w", text) else ONLY_A_VALUE
