"""The embedded model spread over ranks, and drawn with."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psutil

from cache_dit_serving.config.acceleration import ParallelismSettings
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.errors import RunnerLost
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.media.inputs import Inputs
from cache_dit_serving.pipeline.protocol import Loaded, TakePreview, Unwatched
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.ranks.ranked import RankedRunner
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.in_process import EMBEDDED
from tests.support.processes import gone
from tests.support.shadows import ALWAYS
from tests.support.waiting import wait_until

STEPS = 10
CLOSE = 1e-5
"""Greatest difference of a channel: sums over two ranks are rounded in another order."""
REUSING: dict[str, Any] = {
    "cache": {"Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 1.0},
    "num_inference_steps": 3,
}
"""Few steps, all but the first from the cache."""


def spread(settings: Settings = EMBEDDED, **fields: Any) -> Settings:
    parallelism = ParallelismSettings(**({"ulysses_size": 2} | fields))
    server = settings.server.model_copy(update={"warm_up": False})
    return settings.model_copy(update={"parallelism": parallelism, "server": server})


@contextlib.contextmanager
def ranks(settings: Settings) -> Iterator[Loaded]:
    """Ranks without a worker; none of them is left at the end."""
    loaded = RankedRunner.start(settings, print)
    started = [psutil.Process(pid) for pid in pids(loaded).values()]
    try:
        yield loaded
    finally:
        loaded.runner.close()
    assert gone(started), "ranks are left"


def pids(loaded: Loaded) -> dict[int, int]:
    """The processes of the ranks on this machine, by rank."""
    assert isinstance(loaded.runner, RankedRunner)
    return dict(loaded.runner._group._pids)


def draw(loaded: Loaded, watch: Any = None, inputs: Inputs | None = None, **fields: Any) -> Any:
    asked = {"prompt": "a red apple on a blue background", "seed": 3, "num_inference_steps": STEPS} | fields
    call = plan(resolve(GenerateRequest.model_validate(asked), loaded.model), inputs or Inputs()).fitted().call
    return loaded.runner.sample(replace(call, keep_floats=True), watch or Unwatched())


class Cancelling:
    """A watch that cancels after three steps, and notes all that it hears of."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    @property
    def cancelled(self) -> bool:
        return len(self.steps) >= 3

    def progress(self, done: int, cached: int) -> None:
        self.steps.append(done)

    def preview(self, done: int, take: TakePreview) -> None:
        pass


class Server:
    """The pipeline's worker on two ranks, and how it gets on."""

    def __init__(self, settings: Settings) -> None:
        self.worker = PipelineWorker.alone(
            lambda progress: RankedRunner.start(settings, progress), max_queue=4, shadow=ALWAYS
        )
        self.worker.start()

    def ready(self, within_s: float = 180) -> Loaded:
        self.wait_for_state("ready", within_s)
        return self.worker.loaded()

    def wait_for_state(self, state: str, within_s: float = 90) -> None:
        def reached() -> bool:
            assert self.worker.state != "failed", self.worker.reason
            return self.worker.state == state

        wait_until(reached, within_s, lambda: self.worker.reason)

    def wait_for_reason(self, words: str, within_s: float = 90) -> str:
        """Wait until the worker's reason has these words; returns it."""
        wait_until(lambda: words in (self.worker.reason or ""), within_s, lambda: self.worker.reason)
        return self.worker.reason or ""

    def pids(self) -> dict[int, int]:
        return pids(self.ready())

    def generate(self, **fields: Any) -> Generation:
        asked = {"prompt": "a red apple", "seed": 3, "num_inference_steps": STEPS} | fields
        call = plan(resolve(GenerateRequest.model_validate(asked), self.ready().model))
        generation = Generation("one", call)
        self.worker.submit(generation)
        return generation

    def picture(self) -> bytes:
        return self.generate(**REUSING).result.result(180)[0].content

    def lost(self, generation: Generation) -> str:
        """What a generation that a fault befell says, once the ranks run again."""
        error = generation.result.exception(180)
        assert isinstance(error, RunnerLost)
        assert error.status == 503
        return error.message


@contextlib.contextmanager
def drawing(settings: Settings) -> Iterator[Server]:
    """The worker, drained at the end; then none of its ranks is left."""
    server = Server(settings)
    try:
        yield server
        left = [psutil.Process(pid) for pid in server.pids().values()]
    finally:
        server.worker.drain()
        server.worker.join(60)
    assert gone(left), "ranks are left"


def open_to_others(*processes: psutil.Process) -> list[str]:
    """The addresses beyond loopback at which processes or those below them listen."""
    below = [each for process in processes for each in (process, *process.children(recursive=True))]
    listening = {each.laddr for one in below for each in one.net_connections("inet") if each.status == "LISTEN"}
    assert listening  # the ranks' transports, at least
    return [f"{ip}:{port}" for ip, port in listening if not ipaddress.ip_address(ip).is_loopback]


def running(generation: Generation) -> None:
    wait_until(lambda: generation.step >= 2)
