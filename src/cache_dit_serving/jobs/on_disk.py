"""Stand-in for the runner of a model that is not in memory: it answers for it, and cannot draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn

import psutil

from cache_dit_serving.pipeline.protocol import Facts, Freed, Reloaded, Runner, Sampled, Watch, WeightsChoice
from cache_dit_serving.planning.call import ImageCall
from cache_dit_serving.planning.loras import LoraContents


class OnDisk:
    """Runner of a model on disk. The facts are those of the model as it was loaded before."""

    lost: str | None = None
    ended = False

    def __init__(self, before: Runner) -> None:
        self.facts: Facts = before.facts

    def close(self) -> None:
        pass

    def sample(self, call: ImageCall, watch: Watch) -> Sampled:
        _not_in_memory()

    def no_previews(self, pipeline_class: str) -> str | None:
        return None

    def flush(self) -> Freed:
        return Freed(0, 0)

    def loras(self) -> Mapping[str, LoraContents]:
        return {}

    def load_lora(self, name: str) -> None:
        _not_in_memory()

    def unload_lora(self, name: str) -> None:
        _not_in_memory()

    def memory(self) -> dict[str, int]:
        return {"process_resident_bytes": psutil.Process().memory_info().rss}

    def sleep(self, stop: Callable[[], bool]) -> int | None:
        return 0

    def will_wake(self) -> None:
        pass

    def wake(self, sign: Callable[[], None]) -> None:
        _not_in_memory()

    def reload(self, choice: WeightsChoice, sign: Callable[[], None]) -> Reloaded:
        _not_in_memory()

    def drop(self) -> int:
        return 0


def _not_in_memory() -> NoReturn:
    raise AssertionError("a model on disk is loaded before it is used")
