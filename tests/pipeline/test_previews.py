"""Previews from latents, in this process."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from cache_dit_serving.config.settings import PreviewSettings
from cache_dit_serving.pipeline.previews import SAMPLES, Previewer
from cache_dit_serving.pipeline.protocol import Unwatched
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
    pipe: Any = SimpleNamespace()
    assert "no autoencoder" in (Previewer(pipe, PreviewSettings()).why_none("SimpleNamespace") or "")


def test_nothing_is_decoded_before_a_preview_is_wanted_and_the_map_is_fitted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decode = Mock(wraps=PIPE.vae.decode)
    monkeypatch.setattr(PIPE.vae, "decode", decode)
    previewer = Previewer(PIPE, PreviewSettings())
    assert decode.call_count == 0
    for _ in range(2):
        assert taken(previewer, torch.zeros(1, CHANNELS, 8, 8)) is not None
        assert decode.call_count == SAMPLES


def test_an_autoencoder_that_fails_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []

    def fail(*given: object, **fields: object) -> None:
        tried.append(given)
        raise ValueError

    monkeypatch.setattr(PIPE.vae, "decode", fail)
    previewer = Previewer(PIPE, PreviewSettings())
    assert previewer.why_none("SimpleNamespace") is None
    for _ in range(2):
        assert taken(previewer, torch.zeros(1, CHANNELS, 8, 8)) is None
    assert len(tried) == 1
    assert "does not decode" in (previewer.why_none("SimpleNamespace") or "")


def test_latents_of_an_unknown_layout_are_known_to_be_so_after_the_first_step() -> None:
    call: Any = SimpleNamespace(arguments={}, num_inference_steps=4)
    previewer = Previewer(PIPE, PreviewSettings())
    previewer.showing(PIPE, call, Unwatched())(1, torch.zeros(1, 16, CHANNELS))
    assert "layout" in (previewer.why_none("SimpleNamespace") or "")
    assert previewer.why_none("Another") is None
