"""The embedded model in this process, and a worker over it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.pipeline.protocol import Loaded
from tests.support.in_process import EMBEDDED, load


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load(EMBEDDED)


@pytest.fixture
def worker(loaded: Loaded) -> Iterator[PipelineWorker]:
    running = PipelineWorker.alone(lambda progress: loaded, max_queue=8)
    running.start()
    yield running
    running.drain()
    running.join(60)
