"""Training pictures: one object, placed and sized, over a plain background."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .captions import COLOURS, SIZES, caption


@dataclass(frozen=True)
class Placement:
    """Where objects may stand.

    Attributes:
        side: width and height of the pictures, pixels; a multiple of 16 (one transformer token).
        fractions: object side over picture side for small, normal and big.
        jitter: largest shift from the middle, pixels, in each direction.
        step: shifts are multiples of it.
        scale_jitter: relative change of an object's side, drawn uniformly from plus or minus this.
    """

    side: int = 96
    fractions: tuple[float, float, float] = (11 / 24, 2 / 3, 7 / 8)
    jitter: int = 2
    step: int = 2
    scale_jitter: float = 0.0

    def draw(self, size: str, rng: random.Random) -> tuple[int, int, int]:
        """Object side, left and top in pixels; the object lies within the picture."""
        fraction = self.fractions[SIZES.index(size)] * (1 + rng.uniform(-self.scale_jitter, self.scale_jitter))
        extent = min(self.side, 2 * round(self.side * fraction / 2))
        middle = (self.side - extent) // 2
        reach = self.jitter // self.step
        left, top = (min(max(middle + self.step * rng.randint(-reach, reach), 0), self.side - extent) for _ in range(2))
        return extent, left, top


FREE_PLACEMENT = Placement(fractions=(0.46, 0.66, 0.86), jitter=6, step=1, scale_jitter=0.08)
"""Any offset and any size: what the autoencoder must also cope with, and the harder of the two validation sets."""


class Sprites:
    """Objects as premultiplied RGBA tensors, resized on demand and kept."""

    def __init__(self, pictures: Sequence[Image.Image]) -> None:
        self._pictures = pictures
        self._resized: dict[tuple[int, int], Tensor] = {}

    def __len__(self) -> int:
        return len(self._pictures)

    def get(self, index: int, side: int) -> Tensor:
        """Object `index` at `side` x `side` pixels: float32 (4, side, side) in 0..1, colour premultiplied by alpha."""
        key = (index, side)
        if key not in self._resized:
            # "RGBa" is Pillow's premultiplied mode: resizing it leaves no dark fringe.
            small = self._pictures[index].convert("RGBa").resize((side, side), Image.Resampling.LANCZOS)
            array = np.frombuffer(small.tobytes(), np.uint8).reshape(side, side, 4).copy()
            self._resized[key] = torch.from_numpy(array).permute(2, 0, 1).float().div_(255).contiguous()
        return self._resized[key]


def background(colour: str, side: int) -> Tensor:
    """A plain picture: float32 (3, side, side) in 0..1."""
    return (torch.tensor(COLOURS[colour]).view(3, 1, 1) / 255).expand(3, side, side).clone()


def paste(canvas: Tensor, sprite: Tensor, left: int, top: int) -> Tensor:
    """`canvas` (3, H, W) with the premultiplied `sprite` (4, s, s) drawn over it, in place."""
    extent = sprite.shape[-1]
    window = canvas[:, top : top + extent, left : left + extent]
    window.mul_(1 - sprite[3:]).add_(sprite[:3])
    return canvas


@dataclass
class Batch:
    """Pictures (B, 3, side, side) in -1..1, their captions and the object index of each."""

    pictures: Tensor
    captions: list[str]
    objects: list[int]


class Composer:
    """Draws random training batches.

    Args:
        nouns: caption noun of each sprite.
        weights: how often each object is drawn, relative to the others; equally when left out.
    """

    def __init__(
        self,
        sprites: Sprites,
        nouns: Sequence[str],
        placement: Placement,
        seed: int,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.sprites, self.nouns, self.placement = sprites, list(nouns), placement
        self.rng = random.Random(seed)
        self._weights = list(weights) if weights is not None else [1.0] * len(self.nouns)

    def batch(self, count: int, objects: Sequence[int] | None = None) -> Batch:
        """`count` random pictures, of `objects` in that order when given."""
        if objects is None:
            objects = self.rng.choices(range(len(self.nouns)), self._weights, k=count)
        pictures, captions = [], []
        for index in objects:
            colour, size = self.rng.choice(list(COLOURS)), self.rng.choice(SIZES)
            extent, left, top = self.placement.draw(size, self.rng)
            canvas = background(colour, self.placement.side)
            pictures.append(paste(canvas, self.sprites.get(index, extent), left, top))
            captions.append(caption(self.nouns[index], colour, size, self.rng))
        return Batch(torch.stack(pictures) * 2 - 1, captions, list(objects))
