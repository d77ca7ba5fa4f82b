"""Figures of a model folder: losses on fixed held-out examples, and generated pictures against the source pictures.

    python -m training.evaluate MODEL --work training/work

The pictures are judged by exhaustive template matching: each is compared with every object at every position and
thirty-three sizes over the prompted background. It counts as identified when the prompted object fits best of all; the
PSNR of that object's best fit tells how clean the picture is. No placement is favoured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from torch import Tensor
from torch.nn import functional as F

from .captions import COLOURS, SIZES
from .compose import FREE_PLACEMENT, Composer, Placement, Sprites
from .data import load_pictures, object_names
from .flow import Denoiser, validation_losses
from .latents import PatchLatents
from .models import load_model
from .samples import COLOUR_CYCLE, generate, grid_prompt

HELD_OUT_SEED = 999_983
"""Training composers are seeded otherwise, so no run has drawn these pictures on purpose."""


def psnr(output: Tensor, target: Tensor) -> float:
    """Mean over the pictures of the peak signal-to-noise ratio in dB; both (B, 3, H, W) in -1..1."""
    error = (output.clamp(-1, 1) - target).square().mean((1, 2, 3)) / 4
    return float((-10 * error.log10()).mean())


@torch.no_grad()
def match_errors(pictures: Tensor, backgrounds: Tensor, sprites: Sprites, sides: list[int]) -> Tensor:
    """Least mean squared error of each object against each picture over all positions and the given sizes.

    Args:
        pictures: (B, 3, H, W) in 0..1.
        backgrounds: (B, 3), the plain colour behind the object.

    Returns:
        (B, number of objects).
    """
    colour = backgrounds[:, :, None, None]
    rest = pictures - colour
    energy = rest.square().sum((1, 2, 3))
    # With sprite colour P, alpha A and background c the composite minus c is P - A c, so all positions' squared
    # errors come out of one correlation of (rest, -rest . c) with the sprite's (P, A).
    stacked = torch.cat([rest, -(rest * colour).sum(1, keepdim=True)], 1)
    best = torch.full((len(pictures), len(sprites)), torch.inf)
    for side in sides:
        kernels = torch.stack([sprites.get(index, side) for index in range(len(sprites))])
        correlation = F.conv2d(stacked, kernels).amax((2, 3))
        shifted = kernels[None, :, :3] - kernels[None, :, 3:] * backgrounds[:, None, :, None, None]
        errors = energy[:, None] - 2 * correlation + shifted.square().sum((2, 3, 4))
        best = torch.minimum(best, errors)
    return best / pictures[0].numel()


def match_samples(pipeline: FluxPipeline, nouns: list[str], sprites: Sprites, side: int) -> dict[str, object]:
    """Four pictures of each object (normal twice, small, big; seeds 100 to 103) judged by template matching."""
    sides = [round(side * pixels / 96) for pixels in range(32, 97, 2)]
    fit: dict[str, list[float]] = {noun: [] for noun in nouns}
    identified: dict[str, int] = dict.fromkeys(nouns, 0)
    by_size = dict.fromkeys(SIZES, 0.0)
    right_background = 0
    for turn, size in enumerate(("", "", "small", "big")):
        asked = [grid_prompt(index + 5 * turn, noun, size) for index, noun in enumerate(nouns)]
        images = generate(pipeline, [prompt for prompt, _ in asked], [100 + turn] * len(nouns), side)
        pictures = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]) / 255
        backgrounds = torch.tensor([COLOURS[colour] for _, colour in asked]) / 255
        palette = torch.tensor([COLOURS[colour] for colour in COLOUR_CYCLE]) / 255
        border = torch.cat([pictures[:, :, :4].flatten(2), pictures[:, :, -4:].flatten(2)], 2).median(2).values
        nearest = torch.cdist(border, palette).argmin(1).tolist()
        errors = torch.cat(
            [
                match_errors(some, behind, sprites, sides)
                for some, behind in zip(pictures.split(10), backgrounds.split(10), strict=True)
            ]
        )
        for index, noun in enumerate(nouns):
            value = float(-10 * errors[index, index].clamp_min(1e-6).log10())
            fit[noun].append(value)
            by_size[size] += value / len(nouns) / (2 if size == "" else 1)
            identified[noun] += int(errors[index].argmin() == index)
            right_background += COLOUR_CYCLE[nearest[index]] == asked[index][1]
    count = 4 * len(nouns)
    return {
        "identified": f"{sum(identified.values())} of {count}",
        "background_right": f"{right_background} of {count}",
        "fit_psnr": round(sum(map(sum, fit.values())) / count, 2),
        "fit_psnr_by_size": {size or "normal": round(value, 2) for size, value in by_size.items()},
        "fit_psnr_by_object": {noun: round(sum(values) / len(values), 1) for noun, values in fit.items()},
        "missed_of_4": {noun: 4 - hits for noun, hits in identified.items() if hits < 4},
    }


@torch.no_grad()
def evaluate(
    pipeline: FluxPipeline, nouns: list[str], sprites: Sprites, latents: PatchLatents, placement: Placement
) -> dict[str, object]:
    """All figures of one pipeline, for `placement` and for free placement."""
    figures: dict[str, object] = {}
    denoiser = Denoiser(pipeline).eval()
    free = Placement(**{**vars(FREE_PLACEMENT), "side": placement.side})
    for name, where in (("near_centre", placement), ("free", free)):
        composer = Composer(sprites, nouns, where, HELD_OUT_SEED)
        losses = validation_losses(denoiser, pipeline, latents, composer)
        figures[f"flow_loss_{name}"] = round(sum(losses.values()) / len(losses), 4)
        pictures = Composer(sprites, nouns, where, HELD_OUT_SEED + 1).batch(240).pictures
        chunks = [(chunk, latents.encode(chunk)) for chunk in pictures.split(48)]
        decoded = [psnr(pipeline.vae.decode(codes).sample, chunk) for chunk, codes in chunks]
        figures[f"decoder_psnr_{name}"] = round(sum(decoded) / len(decoded), 2)
        encoded = [
            (pipeline.vae.encode(chunk).latent_dist.mode() - codes).square().mean().item() for chunk, codes in chunks
        ]
        figures[f"encoder_mse_{name}"] = round(sum(encoded) / len(encoded), 6)
    return figures | match_samples(pipeline, nouns, sprites, placement.side)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("--work", type=Path, default=Path("training/work"), help="folder of downloads and latents")
    parser.add_argument("--objects", default="embedded", help='"embedded", "all" or names separated by commas')
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    nouns = object_names(args.objects)
    sprites = Sprites(load_pictures(nouns, args.work / "packages"))
    latents = PatchLatents.load(args.work / "latents.safetensors")
    figures = evaluate(load_model(args.model), nouns, sprites, latents, Placement(side=args.side))
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
