"""Runner of a model on several ranks: processes that torch's elastic agent starts and watches.

A group that loses a rank ends as a whole. The running request fails, and the server loads the model again.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter

from cache_dit_serving.caching.checks import CacheSupport
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.errors import InternalError, InvalidRequest, LoadError, OutOfMemory
from cache_dit_serving.media.values import Media
from cache_dit_serving.pipeline.environment import quiet_libraries
from cache_dit_serving.pipeline.protocol import (
    Facts,
    Freed,
    Loaded,
    Reloaded,
    Sampled,
    SampleRecord,
    Stopped,
    Watch,
    WeightsChoice,
)
from cache_dit_serving.planning.call import ImageCall
from cache_dit_serving.planning.loras import LoraContents, LoraTraits
from cache_dit_serving.planning.model import PlannedModel, planned
from cache_dit_serving.planning.traits import PipelineTraits
from cache_dit_serving.ranks import wire
from cache_dit_serving.ranks.agent import POLL_S
from cache_dit_serving.ranks.group import Group
from cache_dit_serving.schemas.request import GenerateRequest

logger = logging.getLogger(__name__)


class RankedRunner:
    """Runner that sends commands to rank 0 and receives its answers."""

    def __init__(self, settings: Settings) -> None:
        assert settings.parallelism is not None
        self._step_timeout_s = settings.parallelism.step_timeout_s
        self._group = Group(settings)
        self.facts: Facts

    @classmethod
    def start(cls, settings: Settings, progress: Callable[[str], None]) -> Loaded:
        """Start the ranks and have them load the model.

        Raises:
            LoadError: the ranks cannot be started, ended, or cannot load the model.
        """
        runner = cls(settings)
        try:
            runner._group.start(progress)
            ready = runner._await_ready(progress)
        except BaseException:
            runner.close()
            raise
        runner.facts = TypeAdapter(Facts).validate_python(ready.facts)
        return Loaded(runner, _model(settings, ready))

    @property
    def lost(self) -> str | None:
        """Reason why the ranks are lost; None while they are usable."""
        return self._group.lost

    @property
    def ended(self) -> bool:
        """True once a rank has ended, even before the reason is known."""
        return self._group.ended

    def sample(self, call: ImageCall, watch: Watch) -> Sampled:
        """Draw an output as the in-process runner does.

        Raises:
            Stopped: `watch` cancelled it.
            ServingError: all ranks failed on it with the same kind of error.
            RunnerLost: the ranks are lost, or a step took longer than `parallelism.step_timeout_s`.
        """
        self._group.send(*wire.sample_message(call))
        cancelled, since = False, time.monotonic()
        while True:
            if watch.cancelled and not cancelled:
                cancelled = True
                self._group.send(wire.Cancel())
            if (heard := self._next()) is None:
                if time.monotonic() - since > self._step_timeout_s:
                    self._group.lose(f"a step took longer than {self._step_timeout_s:g} s")
                    self._group.check()
                continue
            since = time.monotonic()
            answer, blobs = heard
            if isinstance(answer, wire.Progress):
                watch.progress(answer.done, answer.cached)
            elif isinstance(answer, wire.Sampled):
                return _sampled(*wire.media_of(answer, blobs, call.makes))
            elif isinstance(answer, wire.Failed):
                raise _error_of(answer)

    def no_previews(self, pipeline_class: str) -> str | None:
        return "there are no previews of a model on several ranks, which keep their latents"

    def flush(self) -> Freed:
        return Freed(*self._ask(wire.Flush()).freed)

    def loras(self) -> Mapping[str, LoraContents]:
        return self._group.loras

    def load_lora(self, name: str) -> None:
        self._ask(wire.Lora(name=name, loaded=True))

    def unload_lora(self, name: str) -> None:
        self._ask(wire.Lora(name=name, loaded=False))

    def memory(self) -> dict[str, int]:
        """Return the memory of rank 0, bytes."""
        return self._group.memory

    def sleep(self, stop: Callable[[], bool]) -> int | None:
        """Have all ranks move their weights to host memory, which nothing undoes; return the freed bytes of rank 0."""
        return self._ask(wire.Sleep()).slept

    def will_wake(self) -> None:
        pass  # one of several models is in this process alone

    def wake(self, sign: Callable[[], None]) -> None:
        """Have all ranks put their weights back."""
        self._ask(wire.Wake())

    def reload(self, choice: WeightsChoice, sign: Callable[[], None]) -> Reloaded:
        words = "the weights of a model on several ranks cannot be exchanged; start the server anew"
        raise InvalidRequest(words, param="folder")

    def drop(self) -> int:
        """End all ranks; return the bytes that rank 0 held."""
        held = self.memory()
        self.close()
        return held.get("device_allocated_bytes", held.get("process_resident_bytes", 0))

    def close(self) -> None:
        """End all ranks."""
        self._group.close()

    def _ask(self, message: wire.Message) -> wire.Done:
        self._group.send(message)
        while True:
            answer, _ = self._next() or (None, [])
            if isinstance(answer, wire.Failed):
                raise _error_of(answer)
            if isinstance(answer, wire.Done):
                return answer

    def _next(self) -> tuple[wire.Up, list[bytes]] | None:
        """Return the next message of rank 0; None if none came within `POLL_S`.

        Raises:
            RunnerLost: the ranks are lost.
        """
        try:
            return self._group.messages.get(timeout=POLL_S)
        except queue.Empty:
            self._group.check()
            return None

    def _await_ready(self, progress: Callable[[str], None]) -> wire.Ready:
        while True:
            try:
                answer, _ = self._group.messages.get(timeout=POLL_S)
            except queue.Empty:
                if self._group.lost is not None:
                    raise LoadError(f"the ranks ended while they loaded: {self._group.lost}") from None
                continue
            if isinstance(answer, wire.Stage):
                progress(answer.what)
            elif isinstance(answer, wire.Failed):
                raise LoadError(answer.message)
            elif isinstance(answer, wire.Ready):
                return answer


def _sampled(media: Media, record: SampleRecord) -> Sampled:
    return Sampled(lambda: media, record)


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


def _model(settings: Settings, ready: wire.Ready) -> PlannedModel:
    """Build the planned model from the traits that the ranks report."""
    quiet_libraries()
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
