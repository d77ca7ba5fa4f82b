"""A worker process from its first line of log to its last: progress, the address when ready, draining on signals."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from types import FrameType

from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.pipeline.runner import Runner

logger = logging.getLogger("cache_dit_serving")


def configure_logging(level: str) -> None:
    """Give the package's loggers a handler of their own: BentoML shows only those below `bentoml`."""
    logger.setLevel(level)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(
            logging.Formatter("%(asctime)s [%(levelname)s] cache-dit-serving: %(message)s", "%H:%M:%S")
        )
        logger.addHandler(handler)
        logger.propagate = False


def announce(runner: Runner, url: str | None) -> None:
    """Say where to look and one command to try."""
    base = url or "http://localhost:3000"
    body = json.dumps({"prompt": "a red apple on a blue background", "seed": 7})
    info = runner.describe()
    speeds = runner.speeds
    cache = f"speed {speeds.name_of(speeds.default)} by default ({', '.join(speeds.allowed)})"
    logger.info(
        "%s (%s) is ready on %s, %s\n\n"
        "    API docs   %s/docs\n"
        "    try        curl -s %s/generate -H 'Content-Type: application/json' -d '%s' \\\n"
        "                 | python3 -c 'import base64, json, sys; "
        'open("apple.png", "wb").write(base64.b64decode(json.load(sys.stdin)["images"][0]))\'\n',
        info.model,
        info.pipeline_class,
        info.device,
        cache,
        base,
        base,
        body,
    )


def end_process() -> None:
    """End at once, with status 0: the interpreter cannot finish in order while a thread still loads weights."""
    logger.info("ending while the model loads")
    logging.shutdown()
    os._exit(0)


def drain_on_signals(worker: PipelineWorker) -> None:
    """On SIGTERM and SIGINT refuse what waits and what comes, then do what uvicorn does: end when answers are out.

    uvicorn alone would wait for every queued generation.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        previous = signal.getsignal(number)

        def handle(signum: int, frame: FrameType | None, previous: object = previous) -> None:
            # On a thread of its own: the handler interrupts the event loop anywhere, even inside the worker's own lock.
            threading.Thread(target=worker.drain, name="drain").start()
            if callable(previous):
                previous(signum, frame)
            elif previous == signal.SIG_DFL:
                raise SystemExit(128 + signum)

        try:
            signal.signal(number, handle)
        except ValueError:
            # Not the main thread (an app embedded in another program): its owner drains by stopping the service.
            logger.debug("no signal handlers outside the main thread")
            return
