"""A process that has imported the libraries, and forks others: `python -m tests.support.warm_process FD`.

The test processes of a run share it. Each has a connection of its own, which ends with what was forked for it.

Each server is the worker of `bentoml serve` without its supervisor: the same command of BentoML's runs the same ASGI
app. Several workers have a supervisor of the tests (`tests/support/forked_workers.py`). With BentoML's own supervisor,
both are forked (`tests/support/forked_supervisor.py`). A command of the project's and
the process that forks a model's ranks spare the imports here, too. The process itself runs no operation of torch, so
that no thread is lost to a fork.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from contextlib import suppress
from typing import Any

from cache_dit_serving.pipeline.environment import quiet_libraries
from tests.support import forked_ranks, forked_supervisor, forked_workers

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SUPERVISOR_PID = "CACHE_DIT_SUPERVISOR_PID"
"""As in jobs/metrics.py and api/lifecycle.py, which must not be imported before the first of them is set."""
SERVICE = "service:CacheDiTServing"
MODULES = (
    "_bentoml_impl.loader",
    "_bentoml_impl.server.app",
    "_bentoml_impl.server.proxy",
    "_bentoml_impl.server.serving",
    "_bentoml_impl.worker.service",
    "bentoml._internal.service.loader",
    "alembic.command",
    "bentoml.serving",
    "bentoml_cli.cli",
    "circus.arbiter",
    "av",
    "cache_dit",
    "diffusers.guiders",
    "diffusers.pipelines.flux.pipeline_flux",
    "diffusers.pipelines.flux.pipeline_flux_img2img",
    "diffusers.pipelines.flux.pipeline_flux_inpaint",
    "obstore",
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.orm",
    "transformers.models.clip",
    "transformers.models.t5",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
    # Metrics are made as these are imported: prometheus_client makes them anew in a process of another number.
    "cache_dit_serving.supervisor",
    *(f"cache_dit_serving.api.{name}" for name in ("envelope", "methods", "openai_images", "openai_videos", "parts")),
    *(f"cache_dit_serving.api.{name}" for name in ("matching", "origin", "routes", "telemetry")),
    "cache_dit_serving.gpus",
    *(f"cache_dit_serving.jobs.store.{name}" for name in ("migration", "store")),
    *(f"cache_dit_serving.pipeline.{name}" for name in ("attention", "cache", "compiling", "load", "lora", "previews")),
    *(f"cache_dit_serving.pipeline.{name}" for name in ("profiling", "prompt_cache", "runner", "seeding")),
    "cache_dit_serving.ranks.rank",
    "cache_dit_serving.ranks.ranked",
    "torch.distributed.launcher.api",
)
"""Imported by a server of the embedded model; service.py is not among them, since it reads the environment."""
COMMAND = "cache_dit_serving.cli.main"
"""Module of the project's command."""
MESSAGE_BYTES = 1 << 20
"""Greatest size of a message; each is one packet."""


def main() -> None:
    """Serve those who connect to the socket that is this process's first argument, until nobody is left."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    if os.fork():
        os._exit(0)  # whoever started it does not wait for it
    # prometheus_client chooses as it is imported whether processes share metrics. Each server has a folder of its own.
    folder = os.environ[FOLDER] = tempfile.mkdtemp(prefix="metrics-")
    import_libraries()
    gc.collect()
    gc.freeze()
    if serve_all(listener):
        shutil.rmtree(folder)


def serve_all(listener: socket.socket) -> bool:
    """Serve until nobody is connected; return False in a forked process that has ended in order."""
    woken, wakes = socket.socketpair()
    for each in (woken, wakes):
        each.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno())
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    listener.settimeout(60)  # whoever started it connects at once, unless it was killed
    clients: dict[socket.socket, set[int]] = {listener.accept()[0]: set()}
    """The processes that live of those that were forked for each."""
    while clients:
        ready, _, _ = select.select([listener, woken, *clients], [], [])
        if woken in ready:
            woken.recv(4096)
            report_ended(clients)
        if listener in ready:
            clients[listener.accept()[0]] = set()
        for client in set(ready) & clients.keys():
            asked, fds = received(client)
            if not asked:
                end(clients.pop(client))
                client.close()
                continue
            if (pid := fork(json.loads(asked), fds, [listener, woken, wakes, *clients])) is None:
                return False
            for fd in fds:
                os.close(fd)
            clients[client].add(pid)
            say(client, {"forked": pid})
    return True


def received(client: socket.socket) -> tuple[bytes, list[int]]:
    """What a client asks for, and the descriptors with it; nothing once it has gone."""
    try:
        asked, fds, _, _ = socket.recv_fds(client, MESSAGE_BYTES, 2)
    except ConnectionError:
        return b"", []
    return asked, fds


def say(client: socket.socket, summary: dict[str, Any]) -> None:
    with suppress(ConnectionError):  # it has gone, which its next message tells
        client.send(json.dumps(summary).encode())


def end(pids: set[int]) -> None:
    """End servers and commands, with all that is in their sessions. What forks ranks sees itself that it is alone."""
    for pid in pids:
        for kill in (os.killpg, os.kill):  # one that has just been forked leads no session yet
            with suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)


def import_libraries() -> None:
    """Import :data:`MODULES`.

    Raises:
        RuntimeError: a thread was started by it.
    """
    quiet_libraries()
    for name in MODULES:
        importlib.import_module(name)
    # BentoML's worker configures logging before the package is imported; here its loggers are there already.
    importlib.import_module("bentoml._internal.log").SERVER_LOGGING_CONFIG["disable_existing_loggers"] = False
    threads = len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 1
    if threads > 1:
        raise RuntimeError(f"{threads} threads run: a fork would lose them")


def fork(asked: dict[str, Any], fds: list[int], ours: list[socket.socket]) -> int | None:
    """Fork what is asked for; return its number, and None in a process that has ended in order."""
    if pid := os.fork():
        return pid
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for each in ours:
        each.close()
    if fds:
        forked_ranks.serve(*fds)
    try:
        become(asked)
    except Exception:  # noqa: BLE001 - its log is all that is left of it
        traceback.print_exc()
        logging.shutdown()
        os._exit(1)
    return None


def become(asked: dict[str, Any]) -> None:
    """Be a command, or a server, with an environment of its own."""
    os.setsid()
    log, errors = (os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND) for name in ("log", "errors"))
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (errors, 2)):
        os.dup2(source, target)
    folder = os.environ[FOLDER]
    os.environ.clear()
    os.environ.update({FOLDER: folder, **asked["environ"]})
    os.chdir(asked["cwd"])
    if asked["ranks"]:
        forked_ranks.start_by(forked_ranks.fork_here)
    tempfile.tempdir = None  # that of the new environment
    if words := asked["program"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        forked_supervisor.fork_programs(run_module)
        run_module(words, dict(os.environ))
        sys.exit(0)
    if words := asked["command"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job and its children ignore it
        sys.argv = [asked["module"] if asked["module"] != COMMAND else "cache-dit-serving", *words]
        program: Any = importlib.import_module(asked["module"])
        sys.exit(program.main())
    serve(asked["port"], asked["metrics"], asked["workers"])


def run_module(words: list[str], environ: dict[str, str]) -> None:
    """Run `python -m` with these words."""
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = list(words)
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def serve(port: int, metrics: str, workers: int) -> None:
    """Serve as the workers of `bentoml serve` do, with the environment that their supervisor would give them."""
    os.environ |= {
        FOLDER: metrics,
        SUPERVISOR_PID: str(os.getppid() if workers == 1 else os.getpid()),
        "BENTOML_RUNNER_MAP": json.dumps({"cache_dit_serving": f"http://127.0.0.1:{port}"}),
    }
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(2048)  # a connection waits until the server accepts, as behind BentoML's supervisor
    number = 1 if workers == 1 else forked_workers.supervise(workers)
    worker: Any = importlib.import_module("_bentoml_impl.worker.service")
    worker.main.main([SERVICE, "--fd", str(listener.detach()), "--worker-id", str(number)], standalone_mode=False)


def report_ended(clients: dict[socket.socket, set[int]]) -> None:
    """Tell of each process that has ended: its exit status as `subprocess` has it, and its seconds of CPU."""
    while True:
        try:
            pid, status, used = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        summary = {"ended": pid, "status": os.waitstatus_to_exitcode(status), "cpu_s": used.ru_utime + used.ru_stime}
        for client in [each for each, pids in clients.items() if pid in pids]:
            clients[client].remove(pid)
            say(client, summary)


if __name__ == "__main__":
    main()
