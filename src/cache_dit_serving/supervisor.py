"""Supervisor, the first process of `bentoml serve`: its checks before it starts workers, and its log of their ends.

BentoML imports service.py in the supervisor too. BentoML 1.4.39 has no hooks for these checks.
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
from cache_dit_serving.config.safety import SafetySettings
from cache_dit_serving.config.settings import ServerSettings
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.held_folder import HeldFolder, hold
from cache_dit_serving.jobs.safety import Safety
from cache_dit_serving.jobs.shared import CallerCounts, server_folder
from cache_dit_serving.logs import say_last

logger = logging.getLogger(__name__)

TRUSTED_PROXIES, LOOPBACK = "FORWARDED_ALLOW_IPS", "127.0.0.1"
GREATEST_PORT = 65_535


def resolved_or_exit() -> Resolved:
    """Return the settings of this process's environment, with their origins.

    Raises:
        SystemExit: 2, after one line that names the invalid setting.
    """
    try:
        return resolve()
    except ConfigError as error:
        fail(str(error))


def access_or_exit(settings: ServerSettings, counts: CallerCounts | None = None) -> Access:
    """Return the access check: the API keys of the settings and of the file of keys.

    Raises:
        SystemExit: 2, after one line that says why the file of keys is invalid.
    """
    try:
        return Access(settings, counts)
    except ConfigError as error:
        fail(str(error))


def safety_or_exit(settings: SafetySettings) -> Safety:
    """Return the operator's check of prompts and outputs.

    Raises:
        SystemExit: 2, after one line that says why its function cannot be imported.
    """
    try:
        return Safety(settings)
    except ConfigError as error:
        fail(str(error))


def process_name() -> str:
    """Return the name of this process in the log."""
    worker = server_context.worker_index
    return "supervisor" if worker is None else f"worker-{worker}"


def trust_proxies(settings: ServerSettings) -> None:
    """Have uvicorn trust the scheme and client address that the configured proxies send, here and in the workers.

    BentoML 1.4.39 has no setting for it; uvicorn 0.54 reads this variable.
    """
    trusted = os.environ.get(TRUSTED_PROXIES, LOOPBACK)
    os.environ[TRUSTED_PROXIES] = ",".join(dict.fromkeys([*trusted.split(","), *settings.trusted_proxies]))


def prepare_supervisor(resolved: Resolved) -> None:
    """Check the port, the models and the device, log the configuration, and patch BentoML's process manager.

    The patches close it to other users and log how workers end. Does nothing in any process but the supervisor.

    Raises:
        SystemExit: 2, after one line with the reason: the port cannot be listened on, a model is not available, the
            device does not support a setting, or no folder can be made.
    """
    command = click.get_current_context(silent=True)
    if command is None or command.info_name != "serve":
        return
    host = command.params.get("host") or BentoMLContainer.http.host.get()
    port = command.params.get("port")
    check_port(host, BentoMLContainer.http.port.get() if port is None else port)
    logger.info("%s", resolved.described())
    try:
        preflight.check(resolved.settings, resolved.models)
    except ConfigError as error:
        fail(str(error))
    os.environ[SUPERVISOR_PID] = str(os.getpid())
    try:
        folder = HeldFolder("server")
    except OSError as error:
        fail(f"no folder for metrics can be made: {error.strerror}; set TMPDIR to a folder that can be written to")
    atexit.register(_exit_as_the_worker_did)  # registered first and so run last: it ends the process
    atexit.register(folder.remove)
    _keep_metrics_in(folder.path / "metrics")
    _keep_control_in(folder.path)
    _log_ended_workers()


def hold_folder_of_server() -> None:
    """Lock the supervisor's folder while this worker lives. Does nothing without a supervisor."""
    if (folder := server_folder()) is not None:
        hold(folder)


def _keep_metrics_in(folder: Path) -> None:
    """Give the workers a folder of their own for metrics.

    BentoML 1.4.39 shares one folder below BENTOML_HOME among all servers. Each server empties it on start, and the
    metrics of a running server are lost.
    """
    folder.mkdir()
    BentoMLContainer.prometheus_multiproc_dir.set(str(folder))


def check_port(host: str, port: int) -> None:
    """Check that a server can listen at an address.

    Raises:
        SystemExit: 2, after one line with the reason.
    """
    # BentoML 1.4.39 takes the port modulo 65,536, and ends with a traceback for a busy one.
    if not 0 <= port <= GREATEST_PORT:
        fail(f"--port {port}: a port lies between 0 and {GREATEST_PORT}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As the server does, so that closing connections of an ended server do not block the port.
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
    """Move the process manager's command sockets into a folder that only this user may enter.

    BentoML 1.4.39 binds them to ports of 127.0.0.1, where any user of the machine could start programs as this user.
    """
    from circus.arbiter import Arbiter  # BentoML's process manager; its distribution is called kantoku

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
            # In a container BentoML does not restart workers: the container ends, and its orchestrator restarts it.
            after = "another one starts" if self.respawn and not failed else "the server ends"
            logger.error("a worker is gone: %s; %s", ended(message["process_pid"], message["exit_code"]), after)
            if failed and not _failed:
                _failed.append(LOAD_FAILED)
                self.respawn = True  # false in a container, where kantoku 0.18 would end with a traceback
                threading.Thread(target=_end_this_server, name="end", daemon=True).start()
        notify_event(self, topic, message)

    Watcher.notify_event = logging_event


_failed: list[int] = []
"""Exit status of the first worker that could not load its model; empty before."""


def _end_this_server() -> None:
    """Send this process SIGTERM until circus handles it. kantoku 0.18 drops one that comes as it starts a worker."""
    handler = signal.getsignal(signal.SIGTERM)
    while signal.getsignal(signal.SIGTERM) == handler:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


def _exit_as_the_worker_did() -> None:
    """Exit with the failed worker's status. BentoML 1.4.39's `serve` exits with 0 however its workers ended."""
    if _failed:
        logging.shutdown()
        os._exit(_failed[0])


def ended(pid: int, exit_code: int | None) -> str:
    """Return a sentence on how a worker ended.

    Args:
        exit_code: exit status, or the negative number of a signal as in `subprocess`; None if unknown.
    """
    if exit_code is None:
        return f"worker {pid} ended"
    if exit_code >= 0:
        return f"worker {pid} ended with exit status {exit_code}"
    number = -exit_code
    name = signal.Signals(number).name if number in {*signal.Signals} else f"signal {number}"
    hint = " (out of memory, or killed by hand)" if number == signal.SIGKILL else ""
    return f"worker {pid} was ended by {name}{hint}"
