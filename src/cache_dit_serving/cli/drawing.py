"""Progress, Ctrl-C and flags of the commands that draw and measure many outputs: `tune` and `verify`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from cache_dit_serving.errors import ConfigError

QUIET_S = 10.0
"""Seconds between two lines of progress where standard error is not a terminal."""


class Interruption:
    """First Ctrl-C: end after the current step. Second: end at once."""

    def __init__(self, then: str) -> None:
        """
        Args:
            then: clause on what follows the current step, as the first Ctrl-C prints it.
        """
        self._then = then
        self._interrupted = False
        self._before: Any = None

    def __call__(self) -> bool:
        return self._interrupted

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGINT, self._take)

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        print(f"\nending; {self._then} (Ctrl-C again: at once, without it)", file=sys.stderr, flush=True)


class Progress:
    """Progress on standard error: one line that is rewritten on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = -QUIET_S

    def __call__(self, text: str) -> None:
        if self._terminal:
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            print(f"\r\033[K{text[: width - 1]}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._last >= QUIET_S:
            self._last = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def fields_of(texts: Sequence[str]) -> dict[str, Any]:
    """Return the fields of every request by texts such as `width=512`. A value that is no JSON is a text.

    Raises:
        ConfigError: a text is not NAME=VALUE, or names a field that the command sets itself.
    """
    fields: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--field {text}: write NAME=VALUE, such as width=512")
        if name in ("prompt", "seed", "speed", "cache", "deadline_s", "num_images", "num_images_per_prompt"):
            raise ConfigError(f"--field {name}: the command sets it itself; leave it out")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return fields


def count(text: str) -> int:
    """Return a number of at least 1.

    Raises:
        argparse.ArgumentTypeError: the text is no such number.
    """
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)
