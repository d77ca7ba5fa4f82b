"""The latent space: a fixed linear transform of 8 x 8 patches, so that the transformer waits for no autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

STRIDE = 8
CHANNELS = 16


def patches(pictures: Tensor) -> Tensor:
    """Patches of (B, 3, H, W) pictures as rows: (B * H/8 * W/8, 192)."""
    return F.unfold(pictures, STRIDE, stride=STRIDE).transpose(1, 2).reshape(-1, 3 * STRIDE * STRIDE)


@dataclass
class PatchLatents:
    """Linear map from patches to latents and its least-squares inverse.

    Attributes:
        encode_weight: (192, 16), encode_bias: (16,).
        decode_weight: (16, 192), decode_bias: (192,).
    """

    encode_weight: Tensor
    encode_bias: Tensor
    decode_weight: Tensor
    decode_bias: Tensor

    @classmethod
    def fit(cls, pictures: Tensor, exponent: float = 0.6) -> PatchLatents:
        """PCA of the pictures' patches, each dimension divided by its standard deviation to the power `exponent`.

        An exponent of 1 (whitening) gives fine detail the same weight as the outline and is harder to learn; 0 drowns
        the detail. The latents of `pictures` have a standard deviation of 1 over all channels together.
        """
        rows = patches(pictures).double()
        mean = rows.mean(0)
        variances, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
        std = variances.flip(0)[:CHANNELS].clamp_min(1e-12).sqrt()
        components = vectors.flip(1)[:, :CHANNELS]
        gain = std.pow(-exponent)
        gain = gain / ((std * gain).square().mean().sqrt())
        encode = components * gain
        decode = (components / gain).T
        return cls(encode.float(), (-mean @ encode).float(), decode.float().contiguous(), mean.float())

    @classmethod
    @torch.no_grad()
    def fit_to_encoder(cls, vae: AutoencoderKL, pictures: Tensor) -> PatchLatents:
        """The transform that a trained encoder was regressed onto, recovered by least squares.

        A model folder holds no transform, so a run that goes on from one takes it from the encoder.
        """
        latents = torch.cat([vae.encode(chunk).latent_dist.mode() for chunk in pictures.split(32)])
        targets = latents.permute(0, 2, 3, 1).reshape(-1, CHANNELS).double()
        rows = patches(pictures).double()
        encode = _affine_least_squares(rows, targets)
        decode = _affine_least_squares(targets, rows)
        return cls(*(part.float().contiguous() for part in (encode[:-1], encode[-1], decode[:-1], decode[-1])))

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents (B, 16, H/8, W/8) of pictures (B, 3, H, W) in -1..1."""
        batch, _, height, width = pictures.shape
        rows = patches(pictures) @ self.encode_weight + self.encode_bias
        return rows.view(batch, height // STRIDE, width // STRIDE, CHANNELS).permute(0, 3, 1, 2).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) of latents, as well as a linear map can."""
        batch, _, height, width = latents.shape
        rows = latents.permute(0, 2, 3, 1).reshape(-1, CHANNELS) @ self.decode_weight + self.decode_bias
        columns = rows.view(batch, height * width, -1).transpose(1, 2)
        return F.fold(columns, (height * STRIDE, width * STRIDE), STRIDE, stride=STRIDE)

    def to(self, device: torch.device) -> PatchLatents:
        """The same transform on `device`."""
        return PatchLatents(*(part.to(device) for part in vars(self).values()))

    def save(self, path: Path) -> None:
        """Write the transform to a safetensors file."""
        save_file({name: part.contiguous() for name, part in vars(self).items()}, path)

    @classmethod
    def load(cls, path: Path) -> PatchLatents:
        """Read what `save` wrote."""
        return cls(**load_file(path))


def _affine_least_squares(inputs: Tensor, targets: Tensor) -> Tensor:
    """Weights with the bias as last row; a trace of ridge keeps patches that never vary from blowing up."""
    rows = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=inputs.dtype, device=inputs.device)], 1)
    gram = rows.T @ rows
    gram.diagonal().add_(1e-7 * gram.diagonal().mean())
    return torch.linalg.solve(gram, rows.T @ targets)
