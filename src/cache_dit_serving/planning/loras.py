"""LoRAs in planning: the offered ones, and the choice of a call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cache_dit_serving.config.settings import LoraSettings


class LoraChoice(NamedTuple):
    """A LoRA of a call, and its scale."""

    name: str
    scale: float


class LoraContents(NamedTuple):
    """Contents of a LoRA's file."""

    layers: int
    """Number of model layers that it changes."""
    rank: int
    """Greatest rank of its layers."""
    size_bytes: int
    """Total size of its tensors, bytes."""
    trigger_words: str | None
    """Words to put into the prompt, from its metadata."""
    format: str
    """Naming of its tensors, by the trainer that uses it."""
    parts: dict[str, int]
    """Number of layers by component."""
    left_out: str | None
    """First names of the tensors that diffusers does not apply, such as those of a text encoder that it skips."""
    suggested_steps: int | None
    """Number of steps that it is trained for, as its file says. Never applied."""
    suggested_shift: float | None
    """Shift of the schedule that it is trained for, as its file says. Never applied."""


@dataclass(frozen=True)
class LoraTraits:
    """A LoRA that the server offers."""

    name: str
    scale: float
    """Scale for a request without `loras`."""
    max_scale: float
    """Bound on the absolute scale of a request."""
    fused: bool
    """True if it is merged into the weights, so that every request draws with it."""
    contents: LoraContents | None
    """Contents of its file; None if it is loaded on first use."""

    @classmethod
    def of(cls, settings: LoraSettings, contents: LoraContents | None) -> LoraTraits:
        return cls(settings.name, settings.scale, settings.max_scale, settings.fuse, contents)

    @property
    def choice(self) -> LoraChoice:
        return LoraChoice(self.name, self.scale)
