"""Memory that the models of `configs/` need, computed without a GPU by `make full-size`, and what fits on a card."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cache_dit_serving.config.catalog import catalog, recognise
from cache_dit_serving.config.folder import is_folder

FILE = Path(__file__).parent / "footprints.json"
SAFE = 0.9
"""Share of a card that a model may fill: the rest is for CUDA's context, kernels' work space and fragmentation."""


@dataclass(frozen=True)
class Way:
    """A way of placing a model on one card."""

    eight_bit: bool = False
    """True if the transformers' blocks have 8-bit weights."""
    offload: bool = False
    """True if components wait in host memory (`model.offload: model`)."""

    @property
    def settings(self) -> str:
        """The settings that it takes, as they are written; empty for the configuration as it is."""
        parts = []
        if self.eight_bit:
            parts.append("quantize.quant_type: float8_weight_only (or int8_weight_only)")
        if self.offload:
            parts.append("model.offload: model")
        return " and ".join(parts)


WAYS = (Way(), Way(eight_bit=True), Way(offload=True), Way(eight_bit=True, offload=True))
"""Ways, the fastest first; the last needs the least memory."""


@dataclass(frozen=True)
class Footprint:
    """Bytes and operations of a configuration's model at its default size."""

    name: str
    """Name of the configuration."""
    width: int
    height: int
    frames: int
    steps: int | None
    dtype: str
    parameters: int
    weights: dict[str, int]
    """Bytes of each component in the configuration's dtype."""
    eight_bit: dict[str, int]
    """Bytes of each transformer with 8-bit weights in its blocks."""
    inputs: str = ""
    """Digest of the shapes and defaults that it was computed from."""
    unverified: tuple[str, ...] = ()
    """Components whose shapes were compared with no published configuration."""
    activations: dict[str, int] = field(default_factory=dict)
    """Most bytes of tensors beside the weights, by part: `encode`, `denoise`, `decode`. Empty if it was not drawn."""
    flop_per_step: int | None = None
    findings: tuple[str, ...] = ()
    """Operations within a step that wait for the device, or mix devices or dtypes."""
    not_drawn: str | None = None
    """Reason that only the weights are known."""

    def peak_bytes(self, way: Way = WAYS[0]) -> int:
        """Return the most bytes on the card; without a drawing, those of the weights alone."""
        weights = self.weights | (self.eight_bit if way.eight_bit else {})
        if not way.offload:
            return sum(weights.values()) + max(self.activations.values(), default=0)
        return max(size + self._activations_of(component) for component, size in weights.items())

    def fitting(self, card_bytes: int) -> Way | None:
        """Return the fastest way that fits on a card; None if none does."""
        return next((way for way in WAYS if self.peak_bytes(way) <= SAFE * card_bytes), None)

    def advice(self, card_bytes: int) -> str:
        """Return a sentence for the operator about a card's memory: the way that fits, or that none does."""
        size = f"{self.width} x {self.height}" + (f" x {self.frames} frames" if self.frames > 1 else "")
        unsure = f" (shapes of {' and '.join(self.unverified)} unverified)" if self.unverified else ""
        subject = f"By its computed footprint{unsure}, {self.name} at {size}"
        way = self.fitting(card_bytes)
        if way is None:
            least = min(map(self.peak_bytes, WAYS))
            return f"{subject} needs {gigabytes(least)} GB at least, with 8-bit weights and offload."
        if not way.settings:
            return f"{subject} fits on this device ({gigabytes(self.peak_bytes(way))} GB)."
        return f"{subject} fits on this device with {way.settings} ({gigabytes(self.peak_bytes(way))} GB)."

    def _activations_of(self, component: str) -> int:
        if component.startswith("transformer"):
            return self.activations.get("denoise", 0)
        if component in ("vae", "vqvae"):
            return max(self.activations.get("decode", 0), self.activations.get("encode", 0))
        return 0


def gigabytes(size: int) -> str:
    """Return bytes as GB (10^9 bytes)."""
    return f"{size / 1e9:.1f}" if size < 1e10 else f"{size / 1e9:.0f}"


@cache
def footprints() -> dict[str, Footprint]:
    """Return the known footprints by configuration."""
    return {
        name: Footprint(
            name=name,
            **{**found, **{key: tuple(found.get(key, ())) for key in ("findings", "unverified")}},
        )
        for name, found in _read().items()
        if "unknown" not in found
    }


def unknown_footprints() -> dict[str, str]:
    """Return the configurations without a footprint, each with the reason."""
    return {name: found["unknown"] for name, found in _read().items() if "unknown" in found}


def footprint_of(path: str) -> Footprint | None:
    """Return the footprint of a folder or a hub id that a configuration is for; None if it is not known.

    Nothing is read from the hub.
    """
    named = any(path in entry.hub_ids for entry in catalog() if entry.about.recognised)
    if not named and not is_folder(path):
        return None
    return footprints().get(recognise(path).name)


def _read() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found
