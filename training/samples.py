"""Unselected sample grids: one picture per object, with the seed told by the column."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import FluxPipeline
from PIL import Image

from .captions import with_article
from .data import object_names
from .models import load_model

COLUMNS = 10
STEPS = 28
COLOUR_CYCLE = (
    "red", "sky blue", "black", "green", "brown", "orange", "purple", "gray", "blue", "white", "yellow", "pink",
)  # fmt: skip


def grid_prompt(index: int, noun: str, size: str = "") -> tuple[str, str]:
    """Prompt and background colour of the picture at `index`; the colours take turns."""
    colour = COLOUR_CYCLE[index % len(COLOUR_CYCLE)]
    return f"{with_article(f'{size} {noun}'.strip())} on {with_article(colour)} background", colour


@torch.no_grad()
def generate(pipeline: FluxPipeline, prompts: list[str], seeds: list[int], side: int) -> list[Image.Image]:
    """One picture per prompt and seed, each with the noise that a call of its own would draw."""
    pipeline.set_progress_bar_config(disable=True)
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), COLUMNS):
        pictures += pipeline(
            prompts[start : start + COLUMNS],
            height=side,
            width=side,
            num_inference_steps=STEPS,
            max_sequence_length=32,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[start : start + COLUMNS]],
        ).images
    return pictures


def save_grid(
    pipeline: FluxPipeline, nouns: list[str], side: int, path: Path, *, first_seed: int = 0, size: str = ""
) -> None:
    """Write a grid of one picture per noun in rows of ten; the seed is `first_seed` plus the column."""
    prompts = [grid_prompt(index, noun, size)[0] for index, noun in enumerate(nouns)]
    seeds = [first_seed + index % COLUMNS for index in range(len(nouns))]
    rows = -(-len(nouns) // COLUMNS)
    grid = Image.new("RGB", (min(COLUMNS, len(nouns)) * (side + 2), rows * (side + 2)), "white")
    for index, picture in enumerate(generate(pipeline, prompts, seeds, side)):
        grid.paste(picture, (index % COLUMNS * (side + 2), index // COLUMNS * (side + 2)))
    grid.save(path, optimize=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.samples", description=__doc__)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("output", type=Path, help="PNG to write")
    parser.add_argument("--objects", default="embedded", help='"embedded", "all" or names separated by commas')
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--size", default="", help='"small" or "big" objects')
    parser.add_argument("--first-seed", type=int, default=0)
    args = parser.parse_args()
    pipeline = load_model(args.model)
    save_grid(pipeline, object_names(args.objects), args.side, args.output, first_seed=args.first_seed, size=args.size)


if __name__ == "__main__":
    main()
