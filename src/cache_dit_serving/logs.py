"""Logging to standard error in one format for all of the server's processes: text, or one JSON object per line.

Some libraries install handlers and formats of their own. :func:`claim_loggers` routes their records through ours.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal

LogFormat = Literal["text", "json"]

FORMAT_VARIABLE = "CACHE_DIT_SERVING__SERVER__LOG_FORMAT"
"""Environment variable of the format. It is read before the settings are loaded, and in child processes."""
WITHOUT_BARS = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""Environment variables that disable progress bars. tqdm and huggingface_hub read them on import."""
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that end a line, move the cursor, or reorder the displayed text."""
FIELDS = ("request_id", "trace_id", "caller", "model", "route", "status", "seconds")
"""Optional fields of a line, in their order."""

_about: ContextVar[dict[str, str]] = ContextVar("about", default={})  # noqa: B039 (never changed in place)


def note(**fields: str) -> None:
    """Add fields to all further lines of this context. Empty ones are left out."""
    _about.set({**_about.get(), **{name: value for name, value in fields.items() if value}})


@contextmanager
def noted(**fields: str) -> Iterator[None]:
    """Context manager that adds fields to the lines of this context until it exits."""
    token = _about.set(_about.get())
    try:
        note(**fields)
        yield
    finally:
        _about.reset(token)


def configure_logs(level: str, style: LogFormat, process: str) -> None:
    """Log to standard error in one format: this package, libraries, Python's warnings, and uncaught exceptions.

    Progress bars are disabled unless standard error is a terminal.

    Args:
        level: minimum level of this package's and BentoML's lines. The minimum of other libraries is WARNING.
        process: name of this process in each line, such as `worker-1`.
    """
    handler = _Handler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if style == "json" else TextFormatter(process))
    root = logging.getLogger()
    for other in [other for other in root.handlers if isinstance(other, _Handler) or _writes_to_terminal(other)]:
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in ("cache_dit_serving", "bentoml"):
        logging.getLogger(name).setLevel(level)
    claim_loggers()
    logging.captureWarnings(True)
    warnings.formatwarning = _one_line_warning
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    if style == "json":
        os.environ[FORMAT_VARIABLE] = style  # for child processes
    if not sys.stderr.isatty():
        os.environ |= WITHOUT_BARS


def say_last(reason: str, process: str) -> None:
    """Report why this process ends: as a log line in JSON format, or else as plain text."""
    if configured_format() == "json":
        if not _is_configured():
            configure_logs("INFO", "json", process)
        logging.getLogger("cache_dit_serving").critical("%s", reason)
    else:
        print("\n".join(map(one_line, reason.split("\n"))), file=sys.stderr)


def configured_format() -> LogFormat:
    """Return the log format in the environment. Used before the settings are read, and in child processes."""
    return "json" if os.environ.get(FORMAT_VARIABLE, "").strip().lower() == "json" else "text"


def claim_loggers() -> None:
    """Remove handlers that write to the terminal from all loggers, and pass their records to the root logger.

    diffusers, transformers, huggingface_hub, torch, cache-dit and BentoML install such handlers on import. Does nothing
    in a process that has not called :func:`configure_logs`.
    """
    if not _is_configured():
        return
    for logger in list(logging.Logger.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger) and any(map(_writes_to_terminal, logger.handlers)):
            logger.handlers = [handler for handler in logger.handlers if not _writes_to_terminal(handler)]
            logger.propagate = True


def _is_configured() -> bool:
    return any(isinstance(handler, _Handler) for handler in logging.getLogger().handlers)


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """The one handler, which writes to standard error."""


class TextFormatter(logging.Formatter):
    """Formatter of text lines: time, level, process, logger, request id if there is one, message.

    Only a traceback and this package's own text (`extra={"more": ...}`) continue on further lines. These are indented,
    so that none can be taken for a log line.
    """

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        request = f" [{fields['request_id']}]" if "request_id" in fields else ""
        head = f"{_time(record)} {record.levelname} {self._process} {record.name}{request}"
        text = f"{head}: {one_line(record.getMessage())}{getattr(record, 'more', '')}"
        lines = exception.split("\n") if (exception := _exception(record)) else []
        return "\n    ".join([text, *map(one_line, lines)])


class JsonFormatter(logging.Formatter):
    """Formatter of one JSON object per line: time, level, logger, message, process, and any of FIELDS and exception."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": self._process,
        }
        line |= _fields(record)
        if exception := _exception(record):
            line["exception"] = exception
        return json.dumps(line)  # ASCII: no character of a message ends the line


def one_line(text: str) -> str:
    """Escape the unprintable characters of a text, so that it stays one line."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    about = _about.get()
    values = {name: getattr(record, name, about.get(name)) for name in FIELDS}
    return {name: value for name, value in values.items() if value is not None}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _exception(record: logging.LogRecord) -> str:
    """Return the traceback and any stack of a thread (`extra={"stack": ...}`); empty without either."""
    raised = logging.Formatter().formatException(record.exc_info) if record.exc_info else None
    return "\n".join(filter(None, (raised, record.stack_info, getattr(record, "stack", None))))


def _writes_to_terminal(handler: logging.Handler) -> bool:
    standard = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return isinstance(handler, logging.StreamHandler) and handler.stream in standard and type(handler) is not _Handler


def _one_line_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{filename}:{lineno}: {category.__name__}: {message}"


def _log_uncaught(kind: type[BaseException], error: BaseException, frames: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("cache_dit_serving").critical("this process ends", exc_info=(kind, error, frames))


def _log_uncaught_in_thread(hook: threading.ExceptHookArgs) -> None:
    if hook.exc_value is None:
        return
    name = hook.thread.name if hook.thread else "unknown"
    caught = (hook.exc_type, hook.exc_value, hook.exc_traceback)
    logging.getLogger("cache_dit_serving").error("the thread %s has ended", name, exc_info=caught)
