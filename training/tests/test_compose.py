"""Placement and composition."""

from __future__ import annotations

import random

import pytest
import torch
from PIL import Image

from training.captions import COLOURS, SIZES
from training.compose import FREE_PLACEMENT, Composer, Placement, Sprites, background, paste
from training.evaluate import match_errors, psnr


@pytest.fixture
def sprites() -> Sprites:
    disc = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    disc.paste((10, 200, 30, 255), (16, 16, 48, 48))
    bar = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    bar.paste((240, 20, 20, 255), (0, 28, 64, 36))
    return Sprites([disc, bar])


@pytest.mark.parametrize("placement", [Placement(), FREE_PLACEMENT, Placement(side=128, jitter=16)])
def test_objects_stay_within_the_picture(placement: Placement) -> None:
    rng = random.Random(0)
    for _ in range(300):
        extent, left, top = placement.draw(rng.choice(SIZES), rng)
        assert 0 < extent <= placement.side
        assert min(left, top) >= 0
        assert max(left, top) + extent <= placement.side


def test_shifts_are_multiples_of_the_step() -> None:
    rng = random.Random(0)
    drawn = {Placement(jitter=8, step=8).draw("", rng) for _ in range(200)}
    assert drawn == {(64, left, top) for left in (8, 16, 24) for top in (8, 16, 24)}


def test_paste_respects_alpha(sprites: Sprites) -> None:
    picture = paste(background("blue", 96), sprites.get(0, 64), 16, 8)
    assert torch.allclose(picture[:, 0, 0], torch.tensor(COLOURS["blue"]) / 255)
    assert torch.allclose(picture[:, 40, 48], torch.tensor([10, 200, 30]) / 255, atol=1e-6)
    assert torch.equal(background("blue", 96)[:, 0, 0], picture[:, 0, 0])


def test_batches_repeat_with_the_seed(sprites: Sprites) -> None:
    first, again = (Composer(sprites, ["disc", "bar"], Placement(), 5).batch(8) for _ in range(2))
    assert first.captions == again.captions
    assert torch.equal(first.pictures, again.pictures)
    assert first.pictures.shape == (8, 3, 96, 96)
    assert first.pictures.abs().max() <= 1


def test_weights_shift_the_draw(sprites: Sprites) -> None:
    batch = Composer(sprites, ["disc", "bar"], Placement(), 5, weights=[0, 1]).batch(16)
    assert set(batch.objects) == {1}


def test_template_matching_finds_the_object_wherever_it_is(sprites: Sprites) -> None:
    picture = paste(background("pink", 96), sprites.get(1, 40), 31, 7)[None]
    behind = torch.tensor([COLOURS["pink"]]) / 255
    errors = match_errors(picture, behind, sprites, [36, 40])
    assert errors[0, 1] == pytest.approx(0, abs=1e-6)
    assert errors[0, 0] > 0.01


def test_psnr_of_a_known_error() -> None:
    target = torch.zeros(2, 3, 8, 8)
    assert psnr(target + 0.2, target) == pytest.approx(20.0, abs=1e-4)
