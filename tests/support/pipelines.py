"""Small pipelines with random weights, saved as real folders: families that the embedded model is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER


def t5() -> dict[str, Any]:
    """The embedded model's T5, as the keywords that pipelines with T5 alone take it by."""
    import torch
    from transformers import AutoTokenizer, T5EncoderModel

    return {
        "tokenizer": AutoTokenizer.from_pretrained(EMBEDDED_FOLDER / "tokenizer_2"),
        "text_encoder": T5EncoderModel.from_pretrained(EMBEDDED_FOLDER / "text_encoder_2", dtype=torch.float32),
    }


def small_vae(**config: Any) -> Any:
    """4 latent channels, 8 px each, and what else its class takes."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        **config,
    )


def save_pixart(folder: Path) -> Path:
    """A PixArt-Sigma of 4 blocks: its call takes no step callback, and guidance is batched into one pass."""
    import torch
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=4,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=96,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    pipe: Any = PixArtSigmaPipeline(
        **t5(),
        vae=small_vae(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    )
    pipe.save_pretrained(folder)
    return folder


def save_flux_with_guidance(folder: Path) -> Path:
    """The embedded model with a (random) guidance embedding, as guidance-distilled FLUX.1-dev has one."""
    import torch
    from diffusers import FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    pipe: Any = FluxPipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    config = {**pipe.transformer.config, "guidance_embeds": True}
    transformer = FluxTransformer2DModel.from_config(config)
    transformer.load_state_dict(pipe.transformer.state_dict(), strict=False)
    pipe.transformer = transformer
    pipe.save_pretrained(folder)
    return folder


def save_flux_of_nan(folder: Path) -> Path:
    """The embedded model with weights that are not numbers, as a wrong dtype makes them."""
    import torch
    from diffusers import FluxPipeline

    pipe: Any = FluxPipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    torch.nn.init.constant_(pipe.transformer.proj_out.weight, float("nan"))
    pipe.save_pretrained(folder)
    return folder


def save_chroma(folder: Path) -> Path:
    """A Chroma of 2 + 2 blocks: guidance by `guidance_scale` in a second forward pass, which the cache must pair."""
    import torch
    from diffusers import AutoencoderKL, ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    torch.manual_seed(0)
    transformer = ChromaTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=96,
        axes_dims_rope=(4, 14, 14),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    pipe: Any = ChromaPipeline(
        **t5(),
        vae=AutoencoderKL.from_pretrained(EMBEDDED_FOLDER / "vae", dtype=torch.float32),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    pipe.save_pretrained(folder)
    return folder


def save_stable_diffusion(folder: Path) -> Path:
    """A Stable Diffusion with a UNet of 2 levels: text to image, and no transformer that cache-dit could cache."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED_FOLDER / "tokenizer")
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=37,
            num_attention_heads=4,
            num_hidden_layers=2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=12,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=4,
    )
    pipe: Any = StableDiffusionPipeline(
        vae=small_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder
