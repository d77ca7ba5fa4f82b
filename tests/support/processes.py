"""Processes that end."""

from __future__ import annotations

import os
import time

import psutil


def workers(supervisor: int) -> list[psutil.Process]:
    """Return the workers of BentoML's supervisor, each of which leads a session; its other children do not."""
    return [child for child in psutil.Process(supervisor).children() if leads_session(child.pid)]


def leads_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def gone(processes: list[psutil.Process], within_s: float = 60) -> bool:
    """Wait for processes to end; False if one still runs after so many seconds.

    A zombie has ended. One whose parent was killed stays a zombie until the system's first process reaps it.
    """
    end = time.monotonic() + within_s
    while left := [process for process in processes if not has_ended(process)]:
        if time.monotonic() > end:
            return False
        psutil.wait_procs(left, 0.1)
    return True


def has_ended(process: psutil.Process) -> bool:
    """Whether it runs no more; a zombie does not."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
