"""A runner as the rest of the server sees it: its protocol, and the image that it returns. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cache_dit_serving.caching.report import BlockListStats, CacheReport
from cache_dit_serving.media.values import Media
from cache_dit_serving.planning.call import Drawing, GenerationCall
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.schemas.answers import ModelInfo

OnStep = Callable[[int], None]
"""Called after each denoising step with the number done; may raise to stop the generation between two steps."""


@dataclass(frozen=True)
class DrawRecord:
    """How one image came about: values that JSON can hold, of which rates, metrics and answers are made."""

    seed: int
    cache: CacheReport
    stats: list[BlockListStats]
    encode_prompt_s: float
    denoise_s: float
    decode_s: float
    cached_steps_s: float | None
    """Seconds of `denoise_s` in steps that reused something; None where steps could not be told apart."""
    diffs: list[float]
    """Every residual difference that the cache compared, NaN among them."""
    passes: int
    """Forward passes that each step took."""
    transition: str
    """What the cache needed to change for it: none, override or exchange."""

    @property
    def seconds(self) -> float:
        """From the prompt to the picture."""
        return self.encode_prompt_s + self.denoise_s + self.decode_s


@dataclass(frozen=True)
class Drawn:
    """One image of a call as the runner returns it."""

    media: Media
    record: DrawRecord


class Runner(Protocol):
    """What the worker needs of whatever runs generations."""

    model: PlannedModel
    """The loaded model as planning sees it."""
    warmed_up: list[tuple[GenerationCall, DrawRecord]]
    """The records of the warm-up: the first measurements of how long things take."""

    def draw(self, call: GenerationCall, drawing: Drawing, on_step: OnStep) -> Drawn: ...

    def flush_cache(self) -> int: ...

    def describe(self) -> ModelInfo: ...
