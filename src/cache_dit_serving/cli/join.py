"""`cache-dit-serving join`: runs ranks on this machine for a server on another machine."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence

import psutil

from cache_dit_serving.cli.command_line import CommandLine
from cache_dit_serving.logs import configure_logs, configured_format, say_last
from cache_dit_serving.ranks import wire
from cache_dit_serving.ranks.agent import ranks_of, run_ranks
from cache_dit_serving.ranks.interface import warn_of_open_ports
from cache_dit_serving.ranks.versions import versions

logger = logging.getLogger(__name__)

RETRY_S = 1.0
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that torch's agent ends at."""
DESCRIPTION = f"""\
Run ranks on this machine for a server on another one, whose configuration has parallelism.nodes and
parallelism.rendezvous. The server says how many ranks and with what model; the model must be at the same path here.
Waits for the server, and joins it again after it has started anew. {wire.JOIN_TOKEN} holds the same secret on
every node.

  example:
    {wire.JOIN_TOKEN}=... cache-dit-serving join gpu-1:29500
"""


def main(arguments: Sequence[str]) -> int:
    """Join the server's group, then the next one after it has ended, until a signal comes.

    Returns:
        Exit status: 1 if the server refuses this machine, 2 for wrong usage, 128 or more after a signal.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    server = _parser().parse_args(arguments).server
    configure_logs("INFO", configured_format(), "join")
    if not (token := os.environ.get(wire.JOIN_TOKEN)):
        say_last(f"set {wire.JOIN_TOKEN} to the secret that the server has there", "join")
        return 2
    came = _signals_that_come()
    try:
        while True:
            with _reached(server) as link:
                refused = _take_part(link, server, token)
            if refused:
                say_last(refused, "join")
                return 1
            if (number := _latest(came)) is not None:
                return 128 + number
    except KeyboardInterrupt:
        return 130
    except SignalException as ended:
        return 128 + int(ended.sigval)


def _signals_that_come() -> socket.socket:
    """Return a socket that gets a byte for each signal with a handler: its number.

    torch 2.13 raises in its handler of SIGTERM, and swallows that where it stops a group that has just failed
    (`tail_log.py`). The process would then wait for the next server.
    """
    reading, writing = socket.socketpair()
    for each in (reading, writing):
        each.setblocking(False)
    signal.set_wakeup_fd(writing.detach(), warn_on_full_buffer=False)
    return reading


def _latest(came: socket.socket) -> int | None:
    """Return the number of the latest signal to end; None if there was none."""
    with contextlib.suppress(BlockingIOError):
        ending = [number for number in came.recv(4096) if number in ENDING]
        return ending[-1] if ending else None
    return None


def _parser() -> CommandLine:
    parser = CommandLine("cache-dit-serving join", "HOST:PORT", DESCRIPTION)
    parser.add_argument("server", type=_address, metavar="HOST:PORT", help="parallelism.rendezvous of the server")
    return parser


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return text


def _reached(server: str) -> wire.Link:
    """Connect to the server. Retries until it answers."""
    logged = False
    while True:
        try:
            return wire.connect(server)
        except OSError as error:
            if not logged:
                logger.info("waiting for a server at %s (%s)", server, error)
                logged = True
            time.sleep(RETRY_S)


def _take_part(link: wire.Link, server: str, token: str) -> str | None:
    """Run this machine's ranks of one group until they end. Return the reason of a refusal, else None."""
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        link.send(wire.Join(token=token, gpus=torch.cuda.device_count(), versions=versions()))
        logger.info("connected to %s; waiting for the other nodes", server)
        answer = wire.WELCOME.validate_python(link.receive()[0])
    except wire.Closed:
        time.sleep(RETRY_S)
        return None
    if isinstance(answer, wire.Failed):
        return answer.message
    assert isinstance(answer, wire.Place)
    logger.info("node %d of %d: starting %d ranks", answer.node, answer.nodes, answer.ranks)
    warn_of_open_ports()
    over = threading.Event()
    threading.Thread(target=_end_with, args=(link, over), daemon=True).start()
    try:
        run_ranks(answer, server)
    except ChildFailedError:
        logger.info("the ranks ended")
    except SignalException:
        raise
    except Exception:
        logger.exception("the ranks could not be started")
        time.sleep(RETRY_S)
    finally:
        over.set()
    return None


def _end_with(link: wire.Link, over: threading.Event) -> None:
    """Kill the ranks when the server closes its connection. Ranks exit by themselves then, except hung ones."""
    with contextlib.suppress(wire.Closed):
        while True:
            link.receive()
    if not over.is_set():
        logger.info("the server has ended this group")
        for rank in ranks_of(os.getpid()):
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.kill()
