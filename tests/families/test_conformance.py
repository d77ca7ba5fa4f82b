"""Classes of families that cache-dit accelerates: loaded, run as diffusers runs them, cached, refused, cancelled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.conformance import find

CACHED = (  # noqa: SIM905 (one to a line would say no more)
    "Flux FluxInpaint FluxFill FluxKontextInpaint FluxControlNet FluxControlNetImg2Img FluxControlNetInpaint Flux2 "
    "Flux2Klein Flux2KleinInpaint Mochi Wan Wan-2.2 WanImageToVideo WanImageToVideo-2.2 WanVideoToVideo "
    "HunyuanVideo HunyuanVideoImageToVideo HunyuanVideo15 QwenImage QwenImageImg2Img QwenImageInpaint LTX "
    "LTXImageToVideo LTXCondition CogView4 SkyReelsV2 SkyReelsV2ImageToVideo SkyReelsV2DiffusionForcing "
    "SkyReelsV2DiffusionForcingImageToVideo StableDiffusion3 StableDiffusion3Img2Img StableDiffusion3Inpaint "
    "StableDiffusion3PAG StableDiffusion3PAGImg2Img DiT BriaFibo Lumina Lumina2 PixArtAlpha PixArtSigma "
    "PixArtSigmaPAG Sana SanaControlNet SanaSprint SanaSprintImg2Img SanaPAG Chroma HunyuanDiT HunyuanDiTPAG "
    "Kandinsky5T2V Kandinsky5I2V PRX PRXPixel HunyuanImage ChronoEdit ZImage ZImageImg2Img ZImageInpaint OvisImage "
    "Krea2 AnyFlow LongCatImage HunyuanVideo15ImageToVideo AmusedInpaint ZImageOmni HunyuanImageRefiner StableAudio "
    "GlmImage"
).split()
"""Without `Pipeline`; `python -m tests.support.conformance` finds what becomes of the others."""

# Tiny weights and old families warn of much, none of it this project's.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize("name", CACHED)
def test_a_class_is_served_as_diffusers_runs_it_and_reuses_steps(name: str, tmp_path: Path) -> None:
    found = find(name, tmp_path / name)
    assert (found.state, found.reason) == ("cached", None)
    assert found.cached_steps > 0
