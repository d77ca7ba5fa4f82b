"""BentoML's supervisor in a forked process, whose Python programs are forked too: they spare the imports."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
MESSAGE_BYTES = 1 << 20
PROGRAMS = ("_bentoml_impl.worker.service", "bentoml", "cache_dit_serving.pipeline.preflight")
"""Modules whose imports the process has. Others limit their memory, and would not fit beside those."""
FREE_FD = 200
"""Descriptors from here on are free while a program's own are put in their places."""

Program = Callable[[list[str], dict[str, str]], None]
"""Runs `python -m` with these words and this environment, in a process that has the imports and nothing else."""


def adopt_grandchildren() -> None:
    """Have processes below this one become its children as those between end."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def fork_programs(program: Program) -> None:
    """Have `subprocess` fork each `python -m` that this process starts from a spare child, as that is now.

    What is forked becomes a child of this process: the one between them ends, and this one adopts it. The spare child
    ends with this process. `os.execve` of such a program runs it here.
    """
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        _serve(its, program)
    its.close()
    adopt_grandchildren()
    execute = subprocess.Popen._execute_child  # type: ignore[attr-defined]

    def forked(self: Any, args: Any, *rest: Any) -> None:
        """The arguments are those of CPython 3.11 to 3.13, by position."""
        words = _words(args)
        if words is None:
            execute(self, args, *rest)
            return
        _, preexec_fn, close_fds, pass_fds, cwd, env, *_ = rest
        standard = {0: rest[9], 1: rest[12], 2: rest[14]}
        fds = {at: at if fd == -1 else fd for at, fd in standard.items()}
        if not close_fds:  # circus leaves the server's socket open
            fds |= {fd: fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and _inherited(fd)}
        fds |= {fd: fd for fd in pass_fds}
        # Of circus: a session of its own, and no standard input.
        asked = {"words": words, "cwd": cwd and str(cwd), "env": dict(os.environ if env is None else env)}
        asked |= {"at": list(fds), "own_session": preexec_fn is not None}
        socket.send_fds(ours, [json.dumps(asked).encode()], list(fds.values()))
        self.pid = int(ours.recv(MESSAGE_BYTES))
        self._child_created = True
        self._close_pipe_fds(*rest[9:15])

    def here(path: str, args: Sequence[str], env: dict[str, str]) -> None:
        words = _words(args)
        assert words is not None, args
        program(words, env)
        sys.exit(0)

    subprocess.Popen._execute_child = forked  # type: ignore[attr-defined]
    os.execve = here  # type: ignore[assignment]


def _words(args: Any) -> list[str] | None:
    """The module and its arguments, where a command line is `python -m` of this Python."""
    words = [str(word) for word in args] if isinstance(args, list | tuple) else []
    if words[:1] != [sys.executable]:
        return None
    rest = words[3:] if words[1:3] == ["-W", "ignore"] else words[1:]
    return rest[1:] if rest[:1] == ["-m"] and rest[1] in PROGRAMS else None


def _inherited(fd: int) -> bool:
    with suppress(OSError):  # that of the listing
        return os.get_inheritable(fd)
    return False


def _serve(asking: socket.socket, program: Program) -> None:
    """Fork what is asked for, until nobody is left to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        asked, fds, _, _ = socket.recv_fds(asking, MESSAGE_BYTES, 64)
        if not asked:
            os._exit(0)
        read, write = os.pipe()
        if (between := os.fork()) == 0:
            if pid := os.fork():
                os.write(write, str(pid).encode())
                os._exit(0)
            os.close(read)
            os.close(write)
            asking.close()
            _become(json.loads(asked), fds, program)
        os.close(write)
        os.waitpid(between, 0)  # from now on it is the supervisor's child
        asking.send(os.read(read, 64))
        for fd in (read, *fds):
            os.close(fd)


def _become(asked: dict[str, Any], fds: list[int], program: Program) -> None:
    """Be the program, with its descriptors where it expects them."""
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FREE_FD) for fd in fds]
    for fd in fds:
        os.close(fd)
    for fd, at in zip(moved, asked["at"], strict=True):
        os.dup2(fd, at)
        os.close(fd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if asked["own_session"]:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if asked["cwd"]:
        os.chdir(asked["cwd"])
    program(asked["words"], asked["env"])
    sys.exit(0)
