"""The fixed latent transform."""

from __future__ import annotations

from pathlib import Path

import torch

from training.latents import PatchLatents


def pictures(count: int = 24) -> torch.Tensor:
    """Smooth random pictures that 16 dimensions can hold exactly: combinations of 12 fixed 8 x 8 patterns."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(12, 3, 8, 8, generator=generator)
    mixture = torch.randn(count, 4, 4, 12, generator=generator)
    tiles = torch.einsum("bhwk,kcij->bchiwj", mixture, patterns)
    return tiles.reshape(count, 3, 32, 32) / 10


def test_round_trip_and_scale() -> None:
    x = pictures()
    latents = PatchLatents.fit(x)
    codes = latents.encode(x)
    assert codes.shape == (24, 16, 4, 4)
    assert torch.allclose(latents.decode(codes), x, atol=1e-3)
    assert abs(codes.std().item() - 1) < 0.05


def test_latents_move_with_the_picture_by_whole_patches() -> None:
    x = pictures()
    latents = PatchLatents.fit(x)
    assert torch.allclose(latents.encode(x.roll(8, dims=3)), latents.encode(x).roll(1, dims=3), atol=1e-4)


def test_file_round_trip(tmp_path: Path) -> None:
    latents = PatchLatents.fit(pictures())
    latents.save(tmp_path / "latents.safetensors")
    again = PatchLatents.load(tmp_path / "latents.safetensors")
    assert torch.equal(again.encode(pictures(2)), latents.encode(pictures(2)))


def test_an_encoder_gives_its_transform_back() -> None:
    x = pictures()
    true = PatchLatents.fit(x)

    class Distribution:
        def __init__(self, codes: torch.Tensor) -> None:
            self.latent_dist, self._codes = self, codes

        def mode(self) -> torch.Tensor:
            return self._codes

    class Encoder:
        def encode(self, chunk: torch.Tensor) -> Distribution:
            return Distribution(true.encode(chunk))

    found = PatchLatents.fit_to_encoder(Encoder(), x)
    assert (found.encode(x) - true.encode(x)).abs().max() < 1e-2
    assert (found.decode(true.encode(x)) - x).abs().max() < 1e-2
