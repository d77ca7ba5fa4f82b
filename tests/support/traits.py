"""Traits as pipelines of several families have them."""

from __future__ import annotations

import math
from dataclasses import replace

from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.planning.tasks import Task
from cache_dit_serving.planning.traits import (
    GuidanceTraits,
    PipelineTraits,
    SequenceTraits,
    SizeTraits,
    StepTraits,
    VideoTraits,
)

FLUX = PipelineTraits(
    pipeline_class="FluxPipeline",
    tasks=frozenset({Task.TEXT_TO_IMAGE}),
    makes=MediaKind.IMAGE,
    parameters=frozenset(
        "prompt negative_prompt true_cfg_scale height width num_inference_steps sigmas guidance_scale "  # noqa: SIM905
        "max_sequence_length clip_skip eta prompt_2 crops callback_on_step_end".split()
    ),
    sequence=SequenceTraits(default=None, most=512),
    extra_arguments={"clip_skip": int | None, "eta": float, "prompt_2": str | None, "crops": tuple[int, int]},
    sizes=SizeTraits(multiple=16, default_width=1024, default_height=1024),
    steps=StepTraits(default=28, least=1, flow_matching=True),
    guidance=GuidanceTraits(
        default_scale=3.5, default_true_cfg_scale=1.0, guides_above=1.0, honours_scale=True, guided_passes=1
    ),
)
QWEN = replace(
    FLUX,
    pipeline_class="QwenImagePipeline",
    steps=replace(FLUX.steps, least=2),
    guidance=replace(FLUX.guidance, default_true_cfg_scale=4.0),
)
WAN_LIKE = PipelineTraits(
    pipeline_class="CogView4Pipeline",
    tasks=frozenset({Task.TEXT_TO_IMAGE}),
    makes=MediaKind.IMAGE,
    parameters=frozenset({"prompt", "negative_prompt", "height", "width", "num_inference_steps", "guidance_scale"}),
    sizes=SizeTraits(multiple=16, default_width=1024, default_height=1024),
    steps=StepTraits(default=50, least=1, flow_matching=True),
    guidance=GuidanceTraits(
        default_scale=5.0, default_true_cfg_scale=None, guides_above=1.0, honours_scale=True, guided_passes=2
    ),
)
KREA_LIKE = replace(WAN_LIKE, pipeline_class="Krea2Pipeline", guidance=replace(WAN_LIKE.guidance, guides_above=0.0))
DISTILLED = replace(
    WAN_LIKE, pipeline_class="Flux2KleinPipeline", guidance=replace(WAN_LIKE.guidance, guides_above=math.inf)
)
WAN = replace(
    WAN_LIKE,
    pipeline_class="WanPipeline",
    tasks=frozenset({Task.TEXT_TO_VIDEO}),
    makes=MediaKind.VIDEO,
    parameters=WAN_LIKE.parameters | {"num_frames"},
    sizes=SizeTraits(multiple=16, default_width=832, default_height=480),
    video=VideoTraits(
        default_frames=81, multiple=4, remainder=1, frames_parameter="num_frames", fps_parameter=None, default_fps=16.0
    ),
)
"""Makes 4k + 1 frames and is not told their rate."""
