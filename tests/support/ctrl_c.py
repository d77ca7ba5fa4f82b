"""Ctrl-C at a terminal: SIGINT to a program and to all that it started in its process group."""

from __future__ import annotations

import os
import signal
import subprocess
import sys


def interrupted(program: str, *, within_s: float = 60, **variables: str) -> tuple[str, str]:
    """Run a Python program, press Ctrl-C once it has printed "ready", and answer its `input()` after that.

    Args:
        within_s: limit from Ctrl-C to the end, seconds.
        variables: further variables of its environment.

    Returns:
        Its output after "ready", and its errors.
    """
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        env=os.environ | variables,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        os.killpg(running.pid, signal.SIGINT)
        return running.communicate("go on\n", timeout=within_s)
