"""The pipeline classes that every run of the suite draws; the marker `verified` is on the others.

Between them they reach what the code treats apart, as `tests/project/test_sample.py` checks.
"""

from __future__ import annotations

from typing import Any, Literal

import pytest

from tools.models_table import names_of

SAMPLE = frozenset(
    {
        # the transformers' own forward, and what cache-dit 1.5.3 cannot run unaided
        "Bria",
        "Cosmos3Omni",
        "Flux2KleinKV",
        "FluxControlNetImg2Img",
        "HunyuanVideoFramepack",
        "JoyImageEditPlus",
        "LTX2ImageToVideo",
        "QwenImageControlNet",
        "SanaControlNet",
        "SanaVideo",
        "StableAudio3",
        "StableDiffusion3ControlNet",
        "ZImageControlNetInpaint",
        # classes and components that planning and the reading of traits name
        "Allegro",
        "AnyFlowFAR",
        "BriaFiboEdit",
        "ChromaInpaint",
        "CogVideoXVideoToVideo",
        "EasyAnimate",
        "Helios",
        "LTX",
        "LTX2",
        "OmniGen",
        # further tasks, block patterns and findings
        "DiT",
        "EasyAnimateControl",
        "QwenImageImg2Img",
        "ShapE",
        "Wan-2.2",
        "WanVACE",
    }
)

SLOW = frozenset(
    {"Allegro", "AnyFlowFAR", "Helios", "LTX2", "LTX2ImageToVideo", "StableDiffusion3ControlNet", "WanVACE"}
)
"""Those of the sample that take more than two seconds of CPU each."""


def parameters(group: Literal["pictures", "guided", "video", "apart"]) -> list[Any]:
    """The entries of a test module, those outside the sample marked, and those in it that take long."""
    return [pytest.param(name, marks=_marks(name), id=name) for name in names_of(group)]


def _marks(name: str) -> tuple[pytest.MarkDecorator, ...]:
    if name not in SAMPLE:
        return (pytest.mark.verified,)
    return (pytest.mark.slow,) if name in SLOW else ()
