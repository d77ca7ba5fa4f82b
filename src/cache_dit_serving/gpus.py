"""Assignment of GPUs to workers. With BentoML 1.4.39 all workers see the same GPUs, and each would use the first."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import NamedTuple

from cache_dit_serving.config.settings import Settings

logger = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"


class Share(NamedTuple):
    """GPUs of one worker."""

    visible: str
    """Value of CUDA_VISIBLE_DEVICES for the worker."""
    shared: bool
    """True if other workers may use some of them too, because there are too few GPUs."""


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """Return the GPUs in CUDA_VISIBLE_DEVICES; empty if it is not set."""
    return [name.strip() for name in environ.get(VISIBLE, "").split(",") if name.strip()]


def share_of(worker: int, workers: int, per_worker: int, environ: Mapping[str, str]) -> Share:
    """Return the GPUs of a worker: the next `per_worker` ones after those of the workers before it.

    Args:
        worker: index of the worker, from 0.
        environ: environment; CUDA_VISIBLE_DEVICES limits the GPUs to distribute. Unset, GPUs are numbered from 0.
    """
    visible = visible_gpus(environ)
    wanted = range(worker * per_worker, (worker + 1) * per_worker)
    if not visible:
        return Share(",".join(map(str, wanted)), shared=False)
    names = dict.fromkeys(visible[index % len(visible)] for index in wanted)
    return Share(",".join(names), shared=workers * per_worker > len(visible))


def take_share(settings: Settings, worker_index: int | None) -> None:
    """Limit this worker to its own GPUs. Must be called before CUDA is initialised.

    Args:
        worker_index: BentoML's index, from 1; None in a process that is not a worker.
    """
    workers, per_worker = settings.server.workers, settings.gpus_per_worker
    if worker_index is None or workers * per_worker == 1 or settings.model.device not in (None, "cuda"):
        return
    # A restarted worker may get a higher index than there are workers.
    worker = (worker_index - 1) % workers
    share = share_of(worker, workers, per_worker, os.environ)
    os.environ[VISIBLE] = share.visible
    logger.info("worker %d of %d has %s=%s", worker + 1, workers, VISIBLE, share.visible)
    if share.shared:
        logger.warning("%d workers with %d GPU(s) each are more than there are: some share one", workers, per_worker)
