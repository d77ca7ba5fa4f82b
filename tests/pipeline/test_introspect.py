"""Tasks and traits read from the real classes of diffusers."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from cache_dit_serving.errors import LoadError
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.pipeline.introspect import traits_of
from cache_dit_serving.pipeline.output import output_of
from cache_dit_serving.planning.tasks import TASKS, Task, tasks_of

CLASSES = {
    "text-to-image": "Amused AuraFlow Bria BriaFibo Chroma CogView3Plus CogView4 Cosmos2TextToImage ErnieImage Flux "
    "HiDreamImage HunyuanDiT HunyuanDiTPAG HunyuanImage Kandinsky5T2I Krea2 LongCatImage Lumina Lumina2 OvisImage PRX "
    "PRXPixel PixArtAlpha PixArtSigma PixArtSigmaPAG QwenImage Sana SanaPAG SanaSprint StableDiffusion3 "
    "StableDiffusion3PAG ZImage",
    "image-edit": "HunyuanImageRefiner JoyImageEdit JoyImageEditPlus Kandinsky5I2I LongCatImageEdit QwenImageEdit "
    "QwenImageEditPlus",
    "by-example": "VisualCloze VisualClozeGeneration",
    "image-edit text-to-image": "BriaFiboEdit Flux2 Flux2Klein Flux2KleinKV FluxKontext GlmImage OmniGen ZImageOmni",
    "img2img": "AmusedImg2Img ChromaImg2Img FluxImg2Img QwenImageImg2Img SanaSprintImg2Img StableDiffusion3Img2Img "
    "StableDiffusion3PAGImg2Img ZImageImg2Img",
    "inpaint": "AmusedInpaint ChromaInpaint Flux2KleinInpaint FluxFill FluxInpaint FluxKontextInpaint "
    "QwenImageControlNetInpaint QwenImageEditInpaint QwenImageInpaint StableDiffusion3ControlNetInpainting "
    "StableDiffusion3Inpaint ZImageInpaint",
    "control": "CogView4Control FluxControl FluxControlNet HunyuanDiTControlNet QwenImageControlNet SanaControlNet "
    "StableDiffusion3ControlNet ZImageControlNet",
    "control-img2img": "FluxControlImg2Img FluxControlNetImg2Img",
    "control-inpaint": "FluxControlInpaint FluxControlNetInpaint ZImageControlNetInpaint",
    "class-conditional": "DiT",
    "unconditional": "DDIM",
    "text-to-video": "Allegro CogVideoX CosmosTextToWorld EasyAnimate HunyuanVideo HunyuanVideo15 Kandinsky5T2V LTX "
    "LTX2 LTX2Condition Mochi SanaVideo SkyReelsV2 SkyReelsV2DiffusionForcing Wan",
    "image-to-video": "CogVideoXImageToVideo ChronoEdit HunyuanVideo15ImageToVideo HunyuanVideoFramepack "
    "HunyuanVideoImageToVideo Kandinsky5I2V LTX2ImageToVideo LTXI2VLongMultiPrompt LTXImageToVideo SanaImageToVideo "
    "SkyReelsV2DiffusionForcingImageToVideo SkyReelsV2ImageToVideo WanImageToVideo",
    "image-to-video text-to-video video-to-video": "Cosmos2_5_PredictBase Cosmos3Omni Helios HeliosPyramid "
    "LTXCondition",
    "image-to-video video-to-video": "Cosmos2VideoToWorld CosmosVideoToWorld",
    "text-to-video video-to-video": "AnyFlow AnyFlowFAR",
    "video-to-video": "CogVideoXVideoToVideo WanVACE WanVideoToVideo",
    "video-extension": "SkyReelsV2DiffusionForcingVideoToVideo",
    "video-inpaint": "EasyAnimateInpaint",
    "video-control": "CogVideoXFunControl EasyAnimateControl",
    "video-reference": "Cosmos2_5_Transfer LTX2HDR LTX2InContext WanAnimate",
    "text-to-audio": "StableAudio StableAudio3",
    "3d-views": "ShapE ShapEImg2Img",
    "image-layers": "QwenImageLayered",
}
"""Pipeline classes of the families that cache-dit 1.5.3 names, by their tasks. A class's name ends with `Pipeline`."""


@pytest.mark.parametrize(
    ("tasks", "name"), [(tasks, name) for tasks, names in CLASSES.items() for name in names.split()]
)
def test_the_tasks_of_a_pipeline_class(tasks: str, name: str) -> None:
    cls: Any = getattr(diffusers, f"{name}Pipeline")
    found = tasks_of(inspect.signature(cls.__call__).parameters, output_of(cls).kind, cls.__name__)
    assert " ".join(sorted(found)) == tasks


def test_every_task_has_its_facts() -> None:
    assert set(TASKS) == set(Task)


def test_video_with_sound_is_told_from_video_alone() -> None:
    assert output_of(diffusers.LTX2Pipeline) == (MediaKind.VIDEO, "frames", "audio")
    assert output_of(diffusers.LTXPipeline) == (MediaKind.VIDEO, "frames", None)


def test_a_class_that_makes_something_else_is_refused() -> None:
    with pytest.raises(LoadError, match="FluxPriorReduxPipeline makes neither pictures nor video nor audio"):
        output_of(diffusers.FluxPriorReduxPipeline)


def flux(*, guidance_embeds: bool) -> Any:
    transformer = FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, num_attention_heads=1, guidance_embeds=guidance_embeds
    )
    parts: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    vae = AutoencoderKL(block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4)
    return FluxPipeline(FlowMatchEulerDiscreteScheduler(), vae=vae, transformer=transformer, **parts)


@pytest.mark.parametrize("guidance_embeds", [True, False])
def test_flux_honours_guidance_scale_with_an_embedding_alone(guidance_embeds: bool) -> None:
    with torch.device("meta"):
        traits = traits_of(flux(guidance_embeds=guidance_embeds))
    assert traits.guidance.honours_scale is guidance_embeds
    assert traits.guidance.default_scale == 3.5
    assert traits.sizes.multiple == 16
    assert traits.steps.default == 28
