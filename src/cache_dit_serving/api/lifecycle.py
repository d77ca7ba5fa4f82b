"""A worker process from its first line of log to its last: progress, the address when ready, draining on signals."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

import bentoml

from cache_dit_serving.config.models import NamedModel
from cache_dit_serving.config.reading import Resolved
from cache_dit_serving.engine.engine import Engine
from cache_dit_serving.engine.models import Models
from cache_dit_serving.engine.resources import Resources
from cache_dit_serving.jobs.model_loading import LoadAgain
from cache_dit_serving.jobs.pipeline_thread import PipelineThread
from cache_dit_serving.jobs.residency import SleepPolicy
from cache_dit_serving.jobs.residents import MemoryBounds
from cache_dit_serving.jobs.safety import Safety
from cache_dit_serving.jobs.shared import CallerCounts
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.model_folder.size import expected_bytes
from cache_dit_serving.pipeline.protocol import Loaded

logger = logging.getLogger("cache_dit_serving")

SUPERVISOR_PID = "CACHE_DIT_SUPERVISOR_PID"
"""Environment variable by which workers know the process that starts them (supervisor.py)."""
LOAD_FAILED = 3
"""Exit status of a worker, and of the server, whose model cannot be loaded, with server.on_load_failure: exit."""
LAST_REQUESTS_S = 0.5
"""Seconds for requests on connections that are open, once no more are accepted."""


def freeze_heap() -> None:
    """Spare the garbage collector all objects that there are now: the libraries' and the model's stay for good.

    They are half a million. A full collection walks them all, and the process stands still for 160 ms meanwhile. Those
    of a model that was dropped before are collected.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


class Load(NamedTuple):
    """Functions that load a model. Each is given a function that takes the current stage."""

    first: Callable[[Callable[[str], None]], Loaded]
    again: LoadAgain | None = None
    """Loads it after it was dropped; None: as for the first time."""


def models_of(
    resolved: Resolved,
    load: Callable[[NamedModel], Load],
    counts: CallerCounts | None,
    url: Callable[[], str | None],
    safety: Safety,
) -> Models:
    """Make the models of this process with the thread that they share, which does not run yet.

    Args:
        load: returns how a model is loaded.
        counts: generations of each caller at all workers; None: this one counts its own.
        url: address that the server listens on, once it is ready.
        safety: the operator's check of prompts and outputs.
    """
    settings = resolved.settings
    ends = settings.server.on_load_failure == "exit"

    def ready(loaded: Loaded) -> None:
        freeze_heap()
        announce(loaded, url())

    thread = PipelineThread(
        max_queue=settings.limits.max_queue,
        order=settings.server.queue_order,
        preview_every=settings.previews.every,
        max_step_s=settings.limits.max_step_s,
        counts=counts,
        safety=safety,
        bounds=MemoryBounds(settings.residency.max_device_bytes, settings.residency.max_host_bytes),
        switch_after_s=settings.server.switch_after_s,
    )
    resources = Resources.of(settings)
    engines = []
    for each in resolved.models:
        loads = load(each)
        model = thread.add(
            loads.first,
            again=loads.again,
            name=each.name,
            resident=each.resident,
            expected_bytes=partial(expected_bytes, each.settings.model),
            on_request=len(resolved.models) > 1,
            shadow=each.settings.shadow,
            sleep=SleepPolicy(settings.server.sleep_after_s, settings.server.sleep_level),
            on_ready=ready,
            on_failed=end_failed if ends and (each.resident == "always" or each.is_default) else lambda: None,
            retries=settings.server.on_load_failure == "retry",
        )
        worker = PipelineWorker(thread, model)
        engines.append(Engine(each.settings, worker, each.configuration, aliases=each.aliases, resources=resources))
    return Models(engines)


def announce(loaded: Loaded, url: str | None) -> None:
    """Log the address of the documentation and one command to try."""
    base = url or "http://localhost:3000"
    body = json.dumps({"prompt": "a red apple on a blue background", "seed": 7})
    facts, speeds = loaded.runner.facts, loaded.model.speeds
    cache = f"speed {speeds.default_speed} by default ({', '.join(speeds.allowed)})"
    logger.info(
        "%s (%s) is ready on %s, %s; GET /docs describes it",
        facts.name,
        loaded.model.traits.pipeline_class,
        facts.device,
        cache,
        extra={
            "more": f"\n\n    API docs   {base}/docs\n"
            f"    try        curl -s {base}/generate -H 'Content-Type: application/json' -d '{body}' \\\n"
            "                 | python3 -c 'import base64, json, sys; "
            'open("apple.png", "wb").write(base64.b64decode(json.load(sys.stdin)["images"][0]))\'\n'
        },
    )


def end_process() -> None:
    """End at once, with status 0: the interpreter cannot finish in order while a thread still loads weights."""
    logger.info("ending while the model loads, or the pipeline stands still")
    logging.shutdown()
    os._exit(0)


def end_failed() -> None:
    """End this worker at once, in the way by which the supervisor knows that another one would fail alike."""
    logging.shutdown()
    os._exit(LOAD_FAILED)


def let_end(worker: PipelineThread, drain_s: float | None) -> None:
    """Drain `worker`; after `drain_s` seconds the running generation is stopped after its step."""
    worker.drain()
    if not worker.join(drain_s) and worker.report().running:
        logger.warning("what runs is not done after %s s: it is stopped", drain_s)
        worker.give_up()
        worker.join()


def drain_on_signals(worker: PipelineThread, drain_s: float | None, end_at_once: Callable[[], None]) -> None:
    """Drain `worker` on SIGTERM or SIGINT, answering 503 meanwhile; then call the previous handlers.

    Args:
        end_at_once: ends work for requests that do not queue yet.

    uvicorn's handler alone stops accepting at once. The supervisor holds the listening socket, so that connections made
    during the drain would hang until the process ends. A second SIGINT (Ctrl-C) does not wait for the drain.
    """
    if threading.current_thread() is not threading.main_thread():
        # An app embedded in another program: its owner drains by stopping the service.
        return
    drain = _Drain(worker, drain_s, end_at_once)
    for number in (signal.SIGTERM, signal.SIGINT):
        previous = signal.getsignal(number)
        # Python's own handler ends what runs at once, and that is no server.
        if callable(previous) and previous is not signal.default_int_handler:
            drain.previous[number] = previous
            signal.signal(number, drain)


class _Drain:
    """Handler of both signals: one Ctrl-C is SIGINT from the terminal, then SIGTERM from the supervisor."""

    def __init__(self, worker: PipelineThread, drain_s: float | None, end_at_once: Callable[[], None]) -> None:
        self.previous: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._worker = worker
        self._drain_s = drain_s
        self._end_at_once = end_at_once
        self._begun = False
        self._interrupts = 0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self._interrupts += signum == signal.SIGINT
        if self._interrupts > 1:
            # uvicorn takes the first call as "finish", the second as "end now".
            self.previous[signum](signum, frame)
            self.previous[signum](signum, frame)
        elif not self._begun:
            self._begun = True
            # On a thread of its own: the handler interrupts the event loop anywhere, even inside the worker's own lock.
            threading.Thread(target=self._drain, args=(signum,), name="drain", daemon=True).start()

    def _drain(self, signum: int) -> None:
        self._end_at_once()
        let_end(self._worker, self._drain_s)
        # uvicorn closes connections that it has accepted and not read from. They come to this worker as long as it
        # accepts any, also while another worker drains.
        accept_no_more(self.previous[signum])
        time.sleep(LAST_REQUESTS_S)
        self.previous[signum](signum, None)


def accept_no_more(handler: Callable[[int, FrameType | None], Any]) -> None:
    """Stop listening, and go on serving the connections that there are.

    Args:
        handler: uvicorn's of a signal; with another one nothing is done.
    """
    server = getattr(handler, "__self__", None)
    for each in getattr(server, "servers", ()):
        each.get_loop().call_soon_threadsafe(each.close)


def end_with_supervisor(*, poll_s: float = 1.0) -> None:
    """Drain and end this worker when the supervisor is gone: killed, it leaves workers that hold the port for ever.

    The supervisor may be gone already: a worker imports libraries for seconds before it calls this.
    """
    if bentoml.server_context.worker_index is None:
        return  # not started by BentoML's supervisor
    supervisor = int(os.environ.get(SUPERVISOR_PID, os.getppid()))

    def watch() -> None:
        while os.getppid() == supervisor:
            time.sleep(poll_s)
        logger.error("the supervisor, process %d, is gone: this worker ends too", supervisor)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="supervisor-watch", daemon=True).start()
