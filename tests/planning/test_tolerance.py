"""What a server that ignores and reports unsupported fields ignores, and what it refuses all the same."""

from __future__ import annotations

from typing import Any

import pytest

from cache_dit_serving.config.settings import Settings
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.planning.traits import PipelineTraits
from cache_dit_serving.schemas.request import MAX_SEED
from tests.support.planned import planned, request
from tests.support.server import ROOT
from tests.support.traits import FLUX, QWEN, WAN, WAN_LIKE


@pytest.mark.parametrize(
    ("traits", "fields", "param"),
    [
        (FLUX, {"negative_prompt": "blur"}, "negative_prompt"),
        (FLUX, {"negative_prompt": "blur", "true_cfg_scale": 1.0}, "negative_prompt"),
        (QWEN, {"negative_prompt": "blur", "true_cfg_scale": 1.0}, "negative_prompt"),
        (WAN_LIKE, {"negative_prompt": "blur", "guidance_scale": 1.0}, "negative_prompt"),
        (FLUX, {"true_cfg_scale": 3.0}, "true_cfg_scale"),
        (FLUX, {"sigmas": [1.0, 0.5], "num_inference_steps": 50}, "num_inference_steps"),
        (FLUX, {"output_dir": "a"}, "output_dir"),
        (FLUX, {"output_dir": "/tmp"}, "output_dir"),
        (FLUX, {"image_quality": 80}, "image_quality"),
    ],
)
def test_a_tolerant_server_ignores_and_reports_what_the_rest_of_the_request_leaves_without_effect(
    traits: PipelineTraits, fields: dict[str, Any], param: str
) -> None:
    result = planned(request(**fields), traits, Settings(), tolerant=True)
    assert [(warning.param, warning.code) for warning in result.warnings] == [(param, "no_effect")]
    rest = {name: value for name, value in fields.items() if name != param}
    without = planned(request(**rest), traits, Settings(), tolerant=True)
    assert (result.call.arguments, result.call.passes, result.output) == (
        without.call.arguments,
        without.call.passes,
        without.output,
    )
    with pytest.raises(InvalidRequest) as refused:
        planned(request(**fields), traits, Settings())
    assert refused.value.param == param


def test_a_tolerant_server_takes_a_true_cfg_scale_below_1_as_no_guidance() -> None:
    result = planned(request(true_cfg_scale=0.5), QWEN, Settings(), tolerant=True)
    assert (result.call.arguments["true_cfg_scale"], result.call.passes) == (1.0, 1)
    assert [(warning.param, warning.code) for warning in result.warnings] == [("true_cfg_scale", "adjusted")]


REFUSED_BY_ALL = [
    (FLUX, {"prompt": None}, "prompt"),
    (FLUX, {"prompt": "  "}, "prompt"),
    (FLUX, {"prompt": "x" * 10_001}, "prompt"),
    (WAN_LIKE, {"negative_prompt": "x" * 10_001}, "negative_prompt"),
    (FLUX, {"width": 5_000}, "width"),
    (FLUX, {"num_inference_steps": 201}, "num_inference_steps"),
    (QWEN, {"num_inference_steps": 1}, "num_inference_steps"),
    (FLUX, {"sigmas": [0.5, 1.0]}, "sigmas"),
    (FLUX, {"sigmas": [1.5]}, "sigmas"),
    (FLUX, {"num_images": 11}, "num_images"),
    (FLUX, {"seed": MAX_SEED, "num_images": 2}, "seed"),
    (FLUX, {"num_images": 8, "num_inference_steps": 100}, "num_images"),
    (FLUX, {"output_dir": "/tmp", "output_format": "path"}, "output_dir"),
    (FLUX, {"num_frames": 16}, "num_frames"),
    (WAN, {"num_frames": 1}, "num_frames"),
    (WAN, {"num_frames": 10_000}, "num_frames"),
    (FLUX, {"image_urls": ["a.png"]}, "image_urls"),
    (FLUX, {"mask_url": "a.png"}, "mask_url"),
    (FLUX, {"control_url": "a.png"}, "control_url"),
    (FLUX, {"last_image_url": "a.png"}, "last_image_url"),
    (FLUX, {"video_url": "a.mp4"}, "video_url"),
    (FLUX, {"strength": 0.5}, "strength"),
    (FLUX, {"loras": [{"name": "a"}]}, "loras"),
    (FLUX, {"class_label": 1}, "class_label"),
    (FLUX, {"audio_length_s": 2.0}, "audio_length_s"),
    (FLUX, {"profile": True}, "profile"),
    (FLUX, {"max_sequence_length": 513}, "max_sequence_length"),
    (FLUX, {"extra_args": {"width": 64}}, "extra_args"),
    (WAN, {"video_format": "gif", "fps": 60}, "video_format"),
]
"""A refusal of each kind that a tolerant server makes too."""


@pytest.mark.parametrize(("traits", "fields", "param"), REFUSED_BY_ALL)
def test_what_a_tolerant_server_refuses_has_its_reason_in_the_documents(
    traits: PipelineTraits, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        planned(request(**fields), traits, Settings(), tolerant=True)
    assert (refused.value.param or "").partition(".")[0] == param
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    reasons = page.partition("### What stays refused")[2].partition("\n## ")[0]
    assert f"`{param}`" in reasons
