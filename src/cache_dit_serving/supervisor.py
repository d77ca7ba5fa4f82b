"""What the supervisor, the process that `bentoml serve` begins with, checks before it starts workers, and logs of them.

BentoML imports service.py in the supervisor too. There are no hooks in BentoML 1.4.39 for what is here.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import click
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.context import server_context

from cache_dit_serving import preflight
from cache_dit_serving.api.access import Access
from cache_dit_serving.api.lifecycle import LOAD_FAILED, SUPERVISOR_PID
from cache_dit_serving.config.reading import Resolved, resolve
from cache_dit_serving.config.settings import ServerSettings
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.held_folder import HeldFolder, hold
from cache_dit_serving.jobs.shared import CallerCounts, server_folder
from cache_dit_serving.logs import say_last

logger = logging.getLogger(__name__)

TRUSTED_PROXIES, LOOPBACK = "FORWARDED_ALLOW_IPS", "127.0.0.1"
GREATEST_PORT = 65_535


def resolved_or_exit() -> Resolved:
    """The settings of this process's environment, with their origins.

    Raises:
        SystemExit: 2, with one line that says what is wrong with them.
    """
    try:
        return resolve()
    except ConfigError as error:
        fail(str(error))


def access_or_exit(settings: ServerSettings, counts: CallerCounts | None = None) -> Access:
    """Who may use the server.

    Raises:
        SystemExit: 2, with one line that says what is wrong with the file of keys.
    """
    try:
        return Access(settings, counts)
    except ConfigError as error:
        fail(str(error))


def process_name() -> str:
    """The name of this process in the log."""
    worker = server_context.worker_index
    return "supervisor" if worker is None else f"worker-{worker}"


def trust_proxies(settings: ServerSettings) -> None:
    """Have uvicorn take scheme and client from the proxies of the settings, for this process and its workers.

    BentoML 1.4.39 has no setting for it; uvicorn 0.54 reads this variable.
    """
    trusted = os.environ.get(TRUSTED_PROXIES, LOOPBACK)
    os.environ[TRUSTED_PROXIES] = ",".join(dict.fromkeys([*trusted.split(","), *settings.trusted_proxies]))


def prepare_supervisor(resolved: Resolved) -> None:
    """Check where the server is to listen and what it is to serve, say which configuration it has, close the process
    manager to other users, and log from now on how workers end. Does nothing in any other process.

    Raises:
        SystemExit: 2, with one line that says why, where the port cannot be listened on, the model cannot be had, the
            device cannot do what the settings want, or no folder can be made.
    """
    command = click.get_current_context(silent=True)
    if command is None or command.info_name != "serve":
        return
    host = command.params.get("host") or BentoMLContainer.http.host.get()
    port = command.params.get("port")
    check_port(host, BentoMLContainer.http.port.get() if port is None else port)
    logger.info("%s", resolved.described())
    try:
        preflight.check(resolved.settings)
    except ConfigError as error:
        fail(str(error))
    os.environ[SUPERVISOR_PID] = str(os.getpid())
    try:
        folder = HeldFolder("server")
    except OSError as error:
        fail(f"no folder for metrics can be made: {error.strerror}; set TMPDIR to a folder that can be written to")
    atexit.register(_exit_as_the_worker_did)  # the last one to run: it ends the process
    atexit.register(folder.remove)
    _keep_metrics_in(folder.path / "metrics")
    _keep_control_in(folder.path)
    _log_ended_workers()


def hold_folder_of_server() -> None:
    """Keep the supervisor's folder while this worker lives; nothing where there is no supervisor."""
    if (folder := server_folder()) is not None:
        hold(folder)


def _keep_metrics_in(folder: Path) -> None:
    """Give the workers a folder for their metrics.

    BentoML 1.4.39 has one below BENTOML_HOME for all servers. Each of them empties it as it starts, and the metrics of
    one that runs are lost for good.
    """
    folder.mkdir()
    BentoMLContainer.prometheus_multiproc_dir.set(str(folder))


def check_port(host: str, port: int) -> None:
    """Find out whether a server could listen there.

    Raises:
        SystemExit: 2, with one line that says why not.
    """
    # BentoML 1.4.39 takes the port modulo 65,536, and a busy one ends in a traceback.
    if not 0 <= port <= GREATEST_PORT:
        fail(f"--port {port}: a port lies between 0 and {GREATEST_PORT}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As the server does: the connections of one that has ended are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            fail(f"cannot listen on {host}, port {port}: {error.strerror}; choose another with --port")


def fail(reason: str) -> NoReturn:
    """End the process with one line on standard error and exit status 2."""
    say_last(f"error: {reason}", process_name())
    raise SystemExit(2)


def _keep_control_in(folder: Path) -> None:
    """Have the process manager take commands through sockets in a folder of this user's alone.

    BentoML 1.4.39 binds them to ports of 127.0.0.1: any user of the machine could start programs as this one.
    """
    from circus.arbiter import Arbiter  # of BentoML's process manager; its distribution is called kantoku

    initialise = Arbiter.__init__

    def initialise_in_folder(self: Any, *arguments: Any, **named: Any) -> None:
        named |= {"endpoint": f"ipc://{folder}/control", "pubsub_endpoint": f"ipc://{folder}/events"}
        initialise(self, *arguments, **named)

    Arbiter.__init__ = initialise_in_folder


def _log_ended_workers() -> None:
    from circus.watcher import Watcher  # BentoML's process manager; its distribution is called kantoku

    notify_event = Watcher.notify_event

    def logging_event(self: Any, topic: str, message: dict[str, Any]) -> None:
        if topic == "reap" and not self.is_stopping():
            failed = message["exit_code"] == LOAD_FAILED
            # In a container BentoML starts no other one: the container ends, and its orchestrator starts it again.
            after = "another one starts" if self.respawn and not failed else "the server ends"
            logger.error("%s; %s", ended(message["process_pid"], message["exit_code"]), after)
            if failed and not _failed:
                _failed.append(LOAD_FAILED)
                self.respawn = True  # in a container it is false: kantoku 0.18 would end by a traceback
                threading.Thread(target=_end_this_server, name="end", daemon=True).start()
        notify_event(self, topic, message)

    Watcher.notify_event = logging_event


_failed: list[int] = []
"""The exit status of a worker whose model cannot be loaded, once there was one."""


def _end_this_server() -> None:
    """Send this process SIGTERM until circus takes it: kantoku 0.18 drops one while it is about to start a worker."""
    handler = signal.getsignal(signal.SIGTERM)
    while signal.getsignal(signal.SIGTERM) == handler:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


def _exit_as_the_worker_did() -> None:
    """BentoML 1.4.39's `serve` ends with status 0 however its workers ended."""
    if _failed:
        logging.shutdown()
        os._exit(_failed[0])


def ended(pid: int, exit_code: int | None) -> str:
    """How a worker ended, in words.

    Args:
        exit_code: the negative number of a signal, as `subprocess` has it; None where it is not known.
    """
    if exit_code is None:
        return f"worker {pid} ended"
    if exit_code >= 0:
        return f"worker {pid} ended with exit status {exit_code}"
    number = -exit_code
    name = signal.Signals(number).name if number in {*signal.Signals} else f"signal {number}"
    hint = " (out of memory, or killed by hand)" if number == signal.SIGKILL else ""
    return f"worker {pid} was ended by {name}{hint}"
