"""The runner of a model on several ranks: processes that torch's elastic agent starts and watches.

A group that loses a rank ends as a whole: the request that ran fails, and the server loads the model anew.
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cache_dit_serving.caching.checks import CacheSupport
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.errors import InternalError, InvalidRequest, LoadError, OutOfMemory, RunnerLost
from cache_dit_serving.pipeline.protocol import Drawn, Facts, Freed, Loaded, Stopped, Watch
from cache_dit_serving.planning.call import GenerationCall
from cache_dit_serving.planning.loras import LoraContents, LoraTraits
from cache_dit_serving.planning.model import PlannedModel, planned
from cache_dit_serving.planning.traits import PipelineTraits
from cache_dit_serving.runners import wire
from cache_dit_serving.schemas.request import GenerateRequest

logger = logging.getLogger(__name__)

SILENT_S = 30.0
"""Without a word from a rank, after which it counts as hung."""
ENDING_S = 10.0
REASON_S = 1.0
"""For a rank to say what befell it, before another's end that followed counts."""
POLL_S = 0.2


class RankedRunner:
    """Speaks to rank 0; every rank speaks to it."""

    def __init__(self, settings: Settings) -> None:
        assert settings.parallelism is not None
        self._step_timeout_s = settings.parallelism.step_timeout_s
        self._size = settings.parallelism.world_size
        self._token = secrets.token_hex(16)
        self._folder = tempfile.TemporaryDirectory(prefix="cache-dit-ranks-")
        self._listening = socket.socket(socket.AF_UNIX)
        self._path = str(Path(self._folder.name) / "socket")
        given = settings.model_dump_json(exclude_defaults=True)  # an explicit default may be one that has no effect
        Path(self._folder.name, wire.SETTINGS).write_text(given, encoding="utf-8")
        self._listening.bind(self._path)
        self._listening.listen(self._size)
        self._links: dict[int, wire.Link] = {}
        self._pids: dict[int, int] = {}
        self._heard: dict[int, float] = {}
        self._messages: queue.Queue[tuple[wire.Up, list[bytes]]] = queue.Queue()
        self._memory: dict[str, int] = {}
        self._loras: dict[str, LoraContents] = {}
        self._closing = False
        self._lost: str | None = None
        self.facts: Facts

    @classmethod
    def start(cls, settings: Settings, progress: Callable[[str], None]) -> Loaded:
        """Start the ranks and have them load the model.

        Raises:
            LoadError: what stands in the way.
        """
        runner = cls(settings)
        progress(f"starting {runner._size} ranks")
        threading.Thread(target=runner._accept, daemon=True, name="ranks").start()
        threading.Thread(target=runner._agent, daemon=True, name="elastic").start()
        try:
            ready = runner._await_ready(progress)
        except BaseException:
            runner.close()
            raise
        runner.facts = TypeAdapter(Facts).validate_python(ready.facts)
        return Loaded(runner, _model(settings, ready))

    @property
    def lost(self) -> str | None:
        """What befell the ranks, once they are of no more use."""
        silent = [rank for rank, when in self._heard.items() if time.monotonic() - when > SILENT_S]
        if silent:
            self._lose(f"rank {silent[0]} hangs: nothing was heard of it for {SILENT_S:g} s")
        return self._lost

    def sample(self, call: GenerationCall, index: int, watch: Watch) -> Drawn:
        """As the runner in one process does."""
        message, attachments = wire.wired(call, index)
        self._send(wire.Sample(call=message), attachments)
        cancelled, since = False, time.monotonic()
        while True:
            if watch.cancelled and not cancelled:
                cancelled = True
                self._send(wire.Cancel())
            if (heard := self._next()) is None:
                if time.monotonic() - since > self._step_timeout_s:
                    self._lose(f"a step took longer than {self._step_timeout_s:g} s")
                    self._check_lost()
                continue
            since = time.monotonic()
            answer, blobs = heard
            if isinstance(answer, wire.Progress):
                watch.progress(answer.done)
            elif isinstance(answer, wire.Drawn):
                return Drawn(*wire.media_of(answer, blobs, call.makes))
            elif isinstance(answer, wire.Failed):
                raise _error_of(answer)

    def flush(self) -> Freed:
        return Freed(*self._ask(wire.Flush()).freed)

    def loras(self) -> Mapping[str, LoraContents]:
        return self._loras

    def load_lora(self, name: str) -> None:
        self._ask(wire.Lora(name=name, loaded=True))

    def unload_lora(self, name: str) -> None:
        self._ask(wire.Lora(name=name, loaded=False))

    def memory(self) -> dict[str, int]:
        """Of rank 0."""
        return self._memory

    def close(self) -> None:
        """End all ranks."""
        self._closing = True
        try:
            if self._lost is None and 0 in self._links:
                self._links[0].send(wire.Exit())
                self._until_ended(ENDING_S)
        except wire.Closed:
            pass
        for pid in self._pids.values():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for link in self._links.values():
            link.close()
        self._listening.close()
        self._folder.cleanup()

    def _until_ended(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and any(map(_runs, self._pids.values())):
            time.sleep(POLL_S)

    def _ask(self, message: wire.Message) -> wire.Done:
        self._send(message)
        while True:
            answer, _ = self._next() or (None, [])
            if isinstance(answer, wire.Failed):
                raise _error_of(answer)
            if isinstance(answer, wire.Done):
                return answer

    def _next(self) -> tuple[wire.Up, list[bytes]] | None:
        """What rank 0 says next; None where it says nothing for a while.

        Raises:
            RunnerLost: it will say nothing any more.
        """
        try:
            return self._messages.get(timeout=POLL_S)
        except queue.Empty:
            self._check_lost()
            return None

    def _send(self, message: wire.Message, attachments: list[bytes] | None = None) -> None:
        self._check_lost()
        try:
            self._links[0].send(message, attachments)
        except wire.Closed:
            self._lose("rank 0 ended")
            self._check_lost()

    def _check_lost(self) -> None:
        """
        Raises:
            RunnerLost: the ranks are of no more use.
        """
        if (reason := self.lost) is not None:
            raise RunnerLost(reason)

    def _lose(self, reason: str) -> None:
        if self._lost is None and not self._closing:
            logger.error("the ranks are given up: %s", reason)
            self._lost = reason

    def _await_ready(self, progress: Callable[[str], None]) -> wire.Ready:
        while True:
            try:
                answer, _ = self._messages.get(timeout=POLL_S)
            except queue.Empty:
                if self._lost is not None:
                    raise LoadError(f"the ranks ended while they loaded: {self._lost}") from None
                continue
            if isinstance(answer, wire.Stage):
                progress(answer.what)
            elif isinstance(answer, wire.Failed):
                raise LoadError(answer.message)
            elif isinstance(answer, wire.Ready):
                return answer

    def _accept(self) -> None:
        try:
            while True:
                connection, _ = self._listening.accept()
                link = wire.Link(connection)
                threading.Thread(target=self._listen, args=(link,), daemon=True).start()
        except OSError:
            return  # closed

    def _listen(self, link: wire.Link) -> None:
        """Take the messages of one rank, from its hello to its end."""
        rank: int | None = None
        try:
            hello = wire.UP.validate_python(link.receive()[0])
            if not isinstance(hello, wire.Hello) or not secrets.compare_digest(hello.token, self._token):
                link.close()
                return
            rank = hello.rank
            self._links[rank], self._pids[rank] = link, hello.pid
            while True:
                text, attachments = link.receive()
                self._heard[rank] = time.monotonic()
                self._take(rank, wire.UP.validate_python(text), attachments)
        except wire.Closed:
            if rank is not None:
                time.sleep(REASON_S)
                self._lose(f"rank {rank} ended")
        except ValidationError:
            logger.exception("a message of rank %s is not valid", rank)
            self._lose(f"rank {rank} says what is not understood")

    def _take(self, rank: int, message: wire.Up, attachments: list[bytes]) -> None:
        if isinstance(message, wire.Failed) and message.fatal:
            if message.message == wire.ANOTHER:
                return
            what = "ran out of memory" if message.what == "out_of_memory" else f"failed: {message.message}"
            if message.what == "invalid":
                self._messages.put((message, attachments))
            self._lose(f"rank {rank} {what}")
        elif isinstance(message, wire.Beat):
            if rank == 0:
                self._memory = message.memory
                self._loras = {name: LoraContents(**fields) for name, fields in message.loras.items()}
        elif rank == 0:
            self._messages.put((message, attachments))

    def _agent(self) -> None:
        """torch's elastic agent with its ranks, until they end."""
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self._size,
            run_id=self._token,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            rdzv_configs={"is_host": True},
            max_restarts=0,
            monitor_interval=POLL_S,
        )
        os.environ |= {wire.SOCKET: self._path, wire.TOKEN: self._token}
        try:
            elastic_launch(config, sys.executable)("-m", "cache_dit_serving.runners.rank")
        except Exception as error:  # noqa: BLE001 (whatever it is, the ranks are gone)
            self._lose(f"the ranks ended ({type(error).__name__})")


def _error_of(failed: wire.Failed) -> Exception:
    if failed.what == "stopped":
        return Stopped()
    if failed.what == "invalid":
        return InvalidRequest(failed.message, param=failed.param)
    if failed.what == "out_of_memory":
        error = OutOfMemory()
        error.message = failed.message
        return error
    logger.error("the ranks failed alike: %s", failed.message)
    return InternalError()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _model(settings: Settings, ready: wire.Ready) -> PlannedModel:
    """What requests are planned by, as the ranks found it."""
    import diffusers

    from cache_dit_serving.pipeline.arguments import extra_arguments_of

    loras = tuple(TypeAdapter(LoraTraits).validate_python(lora) for lora in ready.loras)
    variants: list[PlannedModel] = []
    for variant in ready.variants:
        traits: Any = TypeAdapter(PipelineTraits).validate_python(variant["traits"])
        extra = extra_arguments_of(getattr(diffusers, traits.pipeline_class), frozenset(GenerateRequest.model_fields))
        support = TypeAdapter(CacheSupport).validate_python(variant["support"])
        variants.append(planned(settings, replace(traits, extra_arguments=extra), support, loras))
    return replace(variants[0], siblings=tuple(variants[1:]))
