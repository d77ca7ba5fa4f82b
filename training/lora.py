"""A LoRA of one visible style, black and white, trained on the embedded model's own pictures without their colours.

`python -m training.lora` writes the one that ships with the embedded model: about five minutes on two CPU threads.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import torch
from diffusers import FluxPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor
from torch.nn import functional as F

from .captions import COLOURS, with_article
from .data import OBJECTS
from .flow import Denoiser, sample_timesteps
from .models import load_model

EMBEDDED = Path(__file__).resolve().parents[1] / "src" / "cache_dit_serving" / "embedded"
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "proj_out"]
TEXT_LENGTH = 32


def grey(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, height, width) in [0, 1] without their colours, by the weights of ITU-R BT.601."""
    luma = (pictures * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return luma.expand_as(pictures)


@torch.no_grad()
def teach(pipeline: FluxPipeline, count: int, side: int, seed: int) -> tuple[list[str], Tensor]:
    """Prompts, and the latents (B, channels, h, w) of the pictures that the model draws of them, in grey."""
    rng, batch = random.Random(seed), 16
    prompts = [
        f"{with_article(rng.choice(list(OBJECTS)))} on {with_article(rng.choice(list(COLOURS)))} background"
        for _ in range(count)
    ]
    latents = []
    config = pipeline.vae.config
    for start in range(0, count, batch):
        pictures = pipeline(
            prompts[start : start + batch],
            height=side,
            width=side,
            num_inference_steps=14,
            max_sequence_length=TEXT_LENGTH,
            generator=torch.Generator().manual_seed(seed + start),
            output_type="pt",
        ).images.float()
        encoded = pipeline.vae.encode(grey(pictures) * 2 - 1).latent_dist.mode()
        latents.append((encoded - config.shift_factor) * config.scaling_factor)
        print(f"taught {min(start + batch, count)} of {count}", flush=True)
    return prompts, torch.cat(latents)


def train(
    pipeline: FluxPipeline, prompts: list[str], latents: Tensor, *, rank: int, steps: int, batch: int, seed: int
) -> dict[str, Tensor]:
    """The LoRA's tensors after so many steps of flow matching on pictures (B, channels, h, w)."""
    torch.manual_seed(seed)
    pipeline.transformer.requires_grad_(False)
    pipeline.text_encoder.requires_grad_(False)
    pipeline.text_encoder_2.requires_grad_(False)
    pipeline.transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS))
    denoiser = Denoiser(pipeline)
    learnt = [parameter for parameter in pipeline.transformer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=4e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    generator, begun, mean = torch.Generator().manual_seed(seed), time.perf_counter(), 0.0
    for step in range(steps):
        chosen = torch.randint(len(prompts), (batch,), generator=generator)
        x0 = latents[chosen]
        noise = torch.randn(x0.shape, generator=generator)
        times = sample_timesteps(batch, generator)
        mix = times.view(-1, 1, 1, 1)
        noisy, target = (
            FluxPipeline._pack_latents(part, *x0.shape) for part in ((1 - mix) * x0 + mix * noise, noise - x0)
        )
        texts = [prompts[index] for index in chosen]
        ids = [
            tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
            for tokenizer, length in (
                (pipeline.tokenizer, pipeline.tokenizer.model_max_length),
                (pipeline.tokenizer_2, TEXT_LENGTH),
            )
        ]
        loss = F.mse_loss(denoiser(noisy, times, *ids), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"step {step}: loss {mean:.4f}, {time.perf_counter() - begun:.0f} s", flush=True)
    tensors: dict[str, Tensor] = get_peft_model_state_dict(pipeline.transformer)
    return {name: tensor.detach().bfloat16().contiguous() for name, tensor in tensors.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=EMBEDDED / "emoji-flux")
    parser.add_argument("--out", type=Path, default=EMBEDDED / "loras" / "monochrome.safetensors")
    parser.add_argument("--pictures", type=int, default=384)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    pipeline = load_model(wanted.model)
    pipeline.set_progress_bar_config(disable=True)
    prompts, latents = teach(pipeline, wanted.pictures, wanted.side, wanted.seed)
    tensors = train(
        pipeline, prompts, latents, rank=wanted.rank, steps=wanted.steps, batch=wanted.batch, seed=wanted.seed
    )
    wanted.out.parent.mkdir(parents=True, exist_ok=True)
    FluxPipeline.save_lora_weights(wanted.out.parent, transformer_lora_layers=tensors, weight_name=wanted.out.name)
    print(f"{wanted.out}: {wanted.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
