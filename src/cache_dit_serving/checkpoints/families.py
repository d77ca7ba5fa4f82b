"""Model families of checkpoints, recognised by the names and shapes of tensors.

The marks of files in the original naming are those of diffusers 0.42.1 (`infer_diffusers_model_type`), which needs
torch. Files in diffusers' naming have marks of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cache_dit_serving.safetensors_header import TensorEntry

DENOISER_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "net.")
"""Prefixes of the denoiser's names, in whole pipelines and in files that ComfyUI wrote."""

UNET_CLASS = "UNet2DConditionModel"
"""Class of diffusers' UNets, of Stable Diffusion 1 to XL."""


class Family(NamedTuple):
    """Model family of a checkpoint."""

    denoiser: str
    """Class of the denoiser in diffusers."""
    pipeline: str
    """Class of the pipeline that draws with it by default."""
    hub_id: str
    """Hub id of a model of the family, whose folder has the configurations and the other components."""


@dataclass(frozen=True)
class Mark:
    """Facts about the tensors of a file that show its family.

    Attributes:
        has: names that must all be there, without the denoiser's prefix.
        side: (name, axis, length) of a tensor's side.
    """

    family: Family
    has: tuple[str, ...]
    side: tuple[str, int, int] | None = None

    def fits(self, tensors: Mapping[str, TensorEntry]) -> bool:
        if not all(name in tensors for name in self.has):
            return False
        if self.side is None:
            return True
        name, axis, length = self.side
        shape = tensors[name].shape if name in tensors else ()
        return len(shape) > axis and shape[axis] == length


def _wan(pipeline: str, hub_id: str, denoiser: str = "WanTransformer3DModel") -> Family:
    return Family(denoiser, pipeline, f"Wan-AI/{hub_id}")


FLUX = "FluxTransformer2DModel"
DEV = Family(FLUX, "FluxPipeline", "black-forest-labs/FLUX.1-dev")
SCHNELL = Family(FLUX, "FluxPipeline", "black-forest-labs/FLUX.1-schnell")
FILL = Family(FLUX, "FluxFillPipeline", "black-forest-labs/FLUX.1-Fill-dev")
DEPTH = Family(FLUX, "FluxControlPipeline", "black-forest-labs/FLUX.1-Depth-dev")
FLUX_2 = Family("Flux2Transformer2DModel", "Flux2Pipeline", "black-forest-labs/FLUX.2-dev")
CHROMA = Family("ChromaTransformer2DModel", "ChromaPipeline", "lodestones/Chroma1-HD")
QWEN = Family("QwenImageTransformer2DModel", "QwenImagePipeline", "Qwen/Qwen-Image")
Z_IMAGE = Family("ZImageTransformer2DModel", "ZImagePipeline", "Tongyi-MAI/Z-Image-Turbo")
LUMINA_2 = Family("Lumina2Transformer2DModel", "Lumina2Pipeline", "Alpha-VLLM/Lumina-Image-2.0")
SANA = Family("SanaTransformer2DModel", "SanaPipeline", "Efficient-Large-Model/Sana_1600M_1024px_diffusers")
HIDREAM = Family("HiDreamImageTransformer2DModel", "HiDreamImagePipeline", "HiDream-ai/HiDream-I1-Dev")
AURA = Family("AuraFlowTransformer2DModel", "AuraFlowPipeline", "fal/AuraFlow-v0.3")
SD3 = Family("SD3Transformer2DModel", "StableDiffusion3Pipeline", "stabilityai/stable-diffusion-3-medium-diffusers")
SD35 = Family("SD3Transformer2DModel", "StableDiffusion3Pipeline", "stabilityai/stable-diffusion-3.5-large")
HUNYUAN = Family("HunyuanVideoTransformer3DModel", "HunyuanVideoPipeline", "hunyuanvideo-community/HunyuanVideo")
MOCHI = Family("MochiTransformer3DModel", "MochiPipeline", "genmo/mochi-1-preview")
LTX = Family("LTXVideoTransformer3DModel", "LTXPipeline", "diffusers/LTX-Video-0.9.0")
LTX_097 = Family("LTXVideoTransformer3DModel", "LTXPipeline", "Lightricks/LTX-Video-0.9.7-dev")
LTX_2 = Family("LTX2VideoTransformer3DModel", "LTX2Pipeline", "Lightricks/LTX-2")
WAN_SMALL = _wan("WanPipeline", "Wan2.1-T2V-1.3B-Diffusers")
WAN_TEXT = _wan("WanPipeline", "Wan2.1-T2V-14B-Diffusers")
WAN_IMAGE = _wan("WanImageToVideoPipeline", "Wan2.1-I2V-14B-480P-Diffusers")
ANIMATE = _wan("WanAnimatePipeline", "Wan2.2-Animate-14B-Diffusers", "WanAnimateTransformer3DModel")
VACE_SMALL = _wan("WanVACEPipeline", "Wan2.1-VACE-1.3B-diffusers", "WanVACETransformer3DModel")
VACE = _wan("WanVACEPipeline", "Wan2.1-VACE-14B-diffusers", "WanVACETransformer3DModel")
SDXL = Family(UNET_CLASS, "StableDiffusionXLPipeline", "stabilityai/stable-diffusion-xl-base-1.0")
SD15 = Family(UNET_CLASS, "StableDiffusionPipeline", "stable-diffusion-v1-5/stable-diffusion-v1-5")

FLUX_KEY = "double_blocks.0.img_attn.norm.key_norm.scale"
FLUX_GUIDANCE = "guidance_in.in_layer.bias"
FLUX_OURS = ("single_transformer_blocks.0.proj_mlp.weight", "x_embedder.weight", "norm_out.linear.weight")
FLUX_OUR_GUIDANCE = "time_text_embed.guidance_embedder.linear_1.weight"
WAN_KEYS = ("head.modulation", "patch_embedding.weight")
WAN_OURS = ("condition_embedder.time_embedder.linear_1.weight", "patch_embedding.weight", "blocks.0.attn1.to_q.weight")


def _wan_marks(keys: tuple[str, ...], vace: str) -> tuple[Mark, ...]:
    patches = "patch_embedding.weight"
    return (
        Mark(VACE_SMALL, (*keys, vace), (patches, 0, 1536)),
        Mark(VACE, (*keys, vace)),
        Mark(WAN_SMALL, keys, (patches, 0, 1536)),
        Mark(WAN_TEXT, keys, (patches, 1, 16)),
        Mark(WAN_IMAGE, keys),
    )


def _flux_marks(keys: tuple[str, ...], guidance: str, pictures: str) -> tuple[Mark, ...]:
    return (
        Mark(FILL, (*keys, guidance), (pictures, 1, 384)),
        Mark(DEPTH, (*keys, guidance), (pictures, 1, 128)),
        Mark(DEV, (*keys, guidance)),
        Mark(SCHNELL, keys),
    )


ORIGINAL: tuple[Mark, ...] = (
    Mark(FLUX_2, ("single_stream_modulation.lin.weight",)),
    Mark(CHROMA, ("distilled_guidance_layer.in_proj.bias",)),
    *_flux_marks((FLUX_KEY,), FLUX_GUIDANCE, "img_in.weight"),
    Mark(LTX_2, ("av_ca_a2v_gate_adaln_single.emb.timestep_embedder.linear_1.weight",)),
    Mark(LTX_097, ("patchify_proj.weight", "transformer_blocks.47.scale_shift_table")),
    Mark(LTX, ("patchify_proj.weight", "transformer_blocks.0.scale_shift_table")),
    Mark(MOCHI, ("blocks.0.attn.qkv_x.weight",)),
    Mark(HUNYUAN, ("txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias",)),
    Mark(AURA, ("cond_seq_linear.weight", "double_layers.0.attn.w2q.weight")),
    Mark(Z_IMAGE, ("layers.0.adaLN_modulation.0.weight",)),
    Mark(LUMINA_2, ("cap_embedder.0.weight",)),
    Mark(SANA, ("blocks.0.cross_attn.q_linear.weight",)),
    Mark(ANIMATE, ("motion_encoder.dec.direction.weight", *WAN_KEYS)),
    *_wan_marks(WAN_KEYS, "vace_blocks.0.after_proj.bias"),
    Mark(HIDREAM, ("double_stream_blocks.0.block.adaLN_modulation.1.bias",)),
    Mark(SD35, ("joint_blocks.37.x_block.mlp.fc1.weight",)),
    Mark(SD3, ("joint_blocks.0.context_block.adaLN_modulation.1.bias",)),
)
"""Marks of transformers in the original naming."""
IN_DIFFUSERS: tuple[Mark, ...] = (
    Mark(FLUX_2, ("single_stream_modulation.linear.weight",)),
    Mark(HUNYUAN, ("context_embedder.token_refiner.refiner_blocks.0.norm1.weight", "x_embedder.proj.weight")),
    *_flux_marks(FLUX_OURS, FLUX_OUR_GUIDANCE, "x_embedder.weight"),
    Mark(QWEN, ("transformer_blocks.0.img_mod.1.weight", "txt_norm.weight")),
    Mark(LTX_2, ("av_cross_attn_video_a2v_gate.emb.timestep_embedder.linear_1.weight",)),
    Mark(LTX_097, ("proj_in.weight", "transformer_blocks.47.scale_shift_table")),
    Mark(LTX, ("proj_in.weight", "transformer_blocks.0.scale_shift_table")),
    Mark(MOCHI, ("pos_frequencies", "patch_embed.proj.weight")),
    Mark(AURA, ("joint_transformer_blocks.0.attn.add_k_proj.weight", "register_tokens")),
    Mark(LUMINA_2, ("time_caption_embed.caption_embedder.0.weight", "noise_refiner.0.norm1.norm.weight")),
    Mark(SANA, ("transformer_blocks.0.ff.conv_inverted.weight", "caption_projection.linear_1.weight")),
    Mark(ANIMATE, ("pose_patch_embedding.weight", *WAN_OURS)),
    *_wan_marks(WAN_OURS, "vace_blocks.0.proj_out.bias"),
    Mark(SD35, ("transformer_blocks.37.norm1_context.linear.weight", "pos_embed.proj.weight")),
    Mark(SD3, ("transformer_blocks.0.norm1_context.linear.weight", "pos_embed.proj.weight")),
)
"""Marks of transformers in diffusers' naming, where it differs from the original one."""
UNETS: tuple[Mark, ...] = (
    Mark(SDXL, ("label_emb.0.0.weight", "input_blocks.0.0.weight")),
    Mark(SDXL, ("add_embedding.linear_1.weight", "conv_in.weight", "down_blocks.0.resnets.0.norm1.weight")),
    Mark(SD15, ("input_blocks.0.0.weight", "time_embed.0.weight")),
    Mark(SD15, ("time_embedding.linear_1.weight", "conv_in.weight", "down_blocks.0.resnets.0.norm1.weight")),
)
MARKS = (*ORIGINAL, *IN_DIFFUSERS, *UNETS)
"""Marks of all families. An earlier one wins."""


def without_prefix(tensors: Mapping[str, TensorEntry]) -> Mapping[str, TensorEntry]:
    """Return the denoiser's tensors without its prefix; all, if none has it."""
    for prefix in DENOISER_PREFIXES:
        found = {name.removeprefix(prefix): entry for name, entry in tensors.items() if name.startswith(prefix)}
        if found:
            return found
    return tensors


def family_of(tensors: Mapping[str, TensorEntry]) -> Family | None:
    """Return the family of the denoiser with these tensors; None: it is unknown."""
    inner = without_prefix(tensors)
    return next((mark.family for mark in MARKS if mark.fits(inner)), None)
