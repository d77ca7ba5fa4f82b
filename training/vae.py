"""The autoencoder's halves, each a plain regression against the fixed latents."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from .compose import Composer
from .latents import CHANNELS, PatchLatents

Log = Callable[[str], None]


@dataclass(frozen=True)
class VaeConfig:
    """Settings of one half's run; the learning rate falls linearly to zero over `minutes`.

    Attributes:
        latent_noise: standard deviation of the noise on the decoder's input, since generated latents are never exact.
    """

    minutes: float = 15.0
    batch: int = 24
    lr: float = 3e-3
    latent_noise: float = 0.03


def picture_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 + L2 + a quarter of the L1 of the gradients, which keeps edges sharp."""
    difference = output - target
    horizontal, vertical = difference.diff(dim=-1).abs().mean(), difference.diff(dim=-2).abs().mean()
    return difference.abs().mean() + difference.square().mean() + 0.25 * (horizontal + vertical)


def train_decoder(
    vae: AutoencoderKL, latents: PatchLatents, composers: Sequence[Composer], config: VaeConfig, log: Log = print
) -> None:
    """Train `vae.decoder` to draw the pictures from their fixed latents; the composers take turns."""
    latents = latents.to(vae.device)
    generator = torch.Generator().manual_seed(0)

    def loss(pictures: Tensor) -> Tensor:
        codes = latents.encode(pictures)
        codes = codes + config.latent_noise * torch.randn(codes.shape, generator=generator).to(vae.device)
        return picture_loss(vae.decoder(codes), pictures)

    _train(vae.decoder, loss, composers, config, log)


def train_encoder(
    vae: AutoencoderKL, latents: PatchLatents, composers: Sequence[Composer], config: VaeConfig, log: Log = print
) -> None:
    """Train the mean of `vae.encoder` onto the fixed latents, with a variance near zero."""
    latents = latents.to(vae.device)

    def loss(pictures: Tensor) -> Tensor:
        mean, log_variance = vae.encoder(pictures).split(CHANNELS, dim=1)
        return F.mse_loss(mean, latents.encode(pictures)) + 1e-4 * (log_variance + 12).square().mean()

    _train(vae.encoder, loss, composers, config, log)


def _train(
    half: torch.nn.Module,
    loss: Callable[[Tensor], Tensor],
    composers: Sequence[Composer],
    config: VaeConfig,
    log: Log,
) -> None:
    name, device = type(half).__name__.lower(), next(half.parameters()).device
    optimizer = torch.optim.AdamW(half.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.0)
    half.train()
    started = logged = time.monotonic()
    step, losses = 0, []
    while (elapsed := time.monotonic() - started) < config.minutes * 60:
        progress = elapsed / (config.minutes * 60)
        optimizer.param_groups[0]["lr"] = config.lr * min(1.0, (step + 1) / 50) * (1 - progress)
        value = loss(composers[step % len(composers)].batch(config.batch).pictures.to(device))
        value.backward()
        torch.nn.utils.clip_grad_norm_(half.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(value))
        step += 1
        if time.monotonic() - logged > 20:
            rate = step * config.batch / (time.monotonic() - started)
            mean = sum(losses) / len(losses)
            eta = config.minutes - elapsed / 60
            log(
                f"{name} {100 * progress:5.1f} %  step {step}  {rate:.1f} samples/s  loss {mean:.5f}  ETA {eta:.1f} min"
            )
            logged, losses = time.monotonic(), []
    half.eval()
