"""Previews from latents, in this process."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cache_dit_serving.config.settings import PreviewSettings
from cache_dit_serving.pipeline.previews import Previewer, previewer_of
from tests.support.pipelines import small_vae

PIPE: Any = SimpleNamespace(vae=small_vae(), scheduler=None, _execution_device=torch.device("cpu"))
CHANNELS = PIPE.vae.config.latent_channels


def taken(previewer: Previewer, latents: torch.Tensor) -> Any:
    return previewer._take(PIPE, {}, None, latents)


@pytest.mark.parametrize("by", ["projection", "vae"])
def test_of_a_clip_the_middle_frame_is_shown_whichever_way_its_latents_lie(by: Any) -> None:
    previewer = Previewer(PIPE, PreviewSettings(every=1, by=by, side=16))
    clip = torch.randn(1, CHANNELS, 5, 8, 12)
    ways = [clip[:, :, 2], clip, clip.transpose(1, 2)]
    images = [taken(previewer, latents)() for latents in ways]
    assert images[0].size == (16, 11)
    assert images[0].tobytes() == images[1].tobytes() == images[2].tobytes()


def test_latents_that_are_not_understood_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    previewer = Previewer(PIPE, PreviewSettings(every=1))
    with caplog.at_level(logging.WARNING):
        assert taken(previewer, torch.zeros(1, CHANNELS + 1, 8, 8)) is None
        assert taken(previewer, torch.zeros(1, 16, CHANNELS)) is None
    assert len(caplog.records) == 1


def test_a_pipeline_without_an_autoencoder_has_no_previews() -> None:
    assert previewer_of(SimpleNamespace(), PreviewSettings(every=1)) is None
