"""Which GPUs a worker has: BentoML 1.4.39 lets all workers of a service see the same ones, and each takes the first."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import NamedTuple

from cache_dit_serving.config.settings import Settings

logger = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"


class Share(NamedTuple):
    """The GPUs of one worker."""

    visible: str
    """As CUDA_VISIBLE_DEVICES has them."""
    shared: bool
    """Whether other workers have some of them too, since there are too few."""


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names; empty also where it is not set."""
    return [name.strip() for name in environ.get(VISIBLE, "").split(",") if name.strip()]


def share_of(worker: int, workers: int, per_worker: int, environ: Mapping[str, str]) -> Share:
    """The GPUs of a worker: as many as each has, after those of the workers before it.

    Args:
        worker: from 0.
        environ: its CUDA_VISIBLE_DEVICES, where it is set, names the GPUs to deal out; else all are, by number.
    """
    visible = visible_gpus(environ)
    wanted = range(worker * per_worker, (worker + 1) * per_worker)
    if not visible:
        return Share(",".join(map(str, wanted)), shared=False)
    names = dict.fromkeys(visible[index % len(visible)] for index in wanted)
    return Share(",".join(names), shared=workers * per_worker > len(visible))


def take_share(settings: Settings, worker_index: int | None) -> None:
    """Let this worker see its own GPUs alone. Before anything asks CUDA for them.

    Args:
        worker_index: BentoML's, from 1; None in a process that is no worker.
    """
    workers, per_worker = settings.server.workers, settings.gpus_per_worker
    if worker_index is None or workers * per_worker == 1 or settings.model.device not in (None, "cuda"):
        return
    # A worker that ended may be followed by one of a higher number.
    worker = (worker_index - 1) % workers
    share = share_of(worker, workers, per_worker, os.environ)
    os.environ[VISIBLE] = share.visible
    logger.info("worker %d of %d has %s=%s", worker + 1, workers, VISIBLE, share.visible)
    if share.shared:
        logger.warning("%d workers with %d GPU(s) each are more than there are: some share one", workers, per_worker)
