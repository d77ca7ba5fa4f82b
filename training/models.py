"""The networks: sizes, construction from scratch, and loading from a model folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.models.normalization import (
    AdaLayerNormContinuous,
    AdaLayerNormZero,
    AdaLayerNormZeroSingle,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from .latents import CHANNELS
from .text import CLIP_LENGTH, clip_tokenizer, t5_tokenizer

HEAD = 32


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a model built from scratch; the defaults are the embedded model's.

    Attributes:
        width: inner width of the transformer, a multiple of 32 (its heads).
        double_blocks, single_blocks: number of joint and of single-stream blocks.
        text_width: width of both text encoders.
    """

    width: int = 128
    double_blocks: int = 2
    single_blocks: int = 10
    text_width: int = 96


def load_model(folder: Path) -> FluxPipeline:
    """The pipeline of a model folder in float32."""
    return FluxPipeline.from_pretrained(folder, dtype=torch.float32)


def build_model(sizes: ModelSizes, words: list[str], side: int) -> FluxPipeline:
    """A pipeline with fresh weights whose tokenizers know `words`, for pictures of `side` pixels."""
    clip, t5 = clip_tokenizer(words), t5_tokenizer(words)
    transformer = FluxTransformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=sizes.double_blocks,
        num_single_layers=sizes.single_blocks,
        attention_head_dim=HEAD,
        num_attention_heads=sizes.width // HEAD,
        joint_attention_dim=sizes.text_width,
        pooled_projection_dim=sizes.text_width,
        guidance_embeds=False,
        axes_dims_rope=(4, 14, 14),
    )
    initialise(transformer)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=side,
        scaling_factor=1.0,
        shift_factor=0.0,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    clip_config = CLIPTextConfig(
        vocab_size=len(clip),
        hidden_size=sizes.text_width,
        intermediate_size=2 * sizes.text_width,
        projection_dim=sizes.text_width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CLIP_LENGTH,
        hidden_act="gelu",
        bos_token_id=clip.bos_token_id,
        eos_token_id=clip.eos_token_id,
        pad_token_id=clip.pad_token_id,
    )
    t5_config = T5Config(
        vocab_size=len(t5),
        d_model=sizes.text_width,
        d_ff=2 * sizes.text_width,
        d_kv=sizes.text_width // 4,
        num_heads=4,
        num_layers=2,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        use_cache=False,
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.5),
        vae=vae,
        text_encoder=CLIPTextModel(clip_config),
        tokenizer=clip,
        text_encoder_2=T5EncoderModel(t5_config),
        tokenizer_2=t5,
        transformer=transformer,
    )


def initialise(transformer: FluxTransformer2DModel) -> None:
    """Xavier for every matrix; zero for the modulations and the last projection, so that training starts at zero."""
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in transformer.modules():
        if isinstance(module, (AdaLayerNormZero, AdaLayerNormZeroSingle, AdaLayerNormContinuous)):
            nn.init.zeros_(module.linear.weight)
    nn.init.zeros_(transformer.proj_out.weight)
