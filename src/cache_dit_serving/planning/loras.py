"""LoRAs as planning sees them: which there are, and with which a call draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cache_dit_serving.config.settings import LoraSettings


class LoraChoice(NamedTuple):
    """A LoRA that a call draws with."""

    name: str
    scale: float


class LoraContents(NamedTuple):
    """What a LoRA's file holds."""

    layers: int
    """Layers of the model that it changes."""
    rank: int
    """The greatest of them."""
    size_bytes: int
    """Of its tensors."""
    trigger_words: str | None
    """Words that it wants in the prompt, as its own metadata say."""


@dataclass(frozen=True)
class LoraTraits:
    """A LoRA that is loaded."""

    name: str
    scale: float
    """By default: of a request that names none."""
    max_scale: float
    """Greatest scale that a request may ask for, and least with a minus."""
    fused: bool
    """Part of the weights: every request draws with it."""
    contents: LoraContents | None
    """None: it is loaded when it is first chosen."""

    @classmethod
    def of(cls, settings: LoraSettings, contents: LoraContents | None) -> LoraTraits:
        return cls(settings.name, settings.scale, settings.max_scale, settings.fuse, contents)

    @property
    def choice(self) -> LoraChoice:
        return LoraChoice(self.name, self.scale)
