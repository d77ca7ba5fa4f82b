"""Flow matching: the transformer and both text encoders, trained jointly on fixed latents.

The noisy sample is (1 - t) * x0 + t * noise and the target is noise - x0, as in Flux and Stable Diffusion 3
(Esser et al. 2024, "Scaling Rectified Flow Transformers").
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxPipeline
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .compose import Batch, Composer
from .latents import PatchLatents


@dataclass(frozen=True)
class FlowConfig:
    """Settings of a transformer run, which ends at `samples` or after `minutes`, whichever comes first.

    Attributes:
        hold: share of the run at full learning rate, before the linear decay to zero.
        text_lengths: T5 token counts and how often each is drawn, so that padding does not matter to the model.
        compile: compile the blocks for the common text lengths: 76 s each on one CPU thread, then 1.3 times faster.
    """

    samples: int = 160_000
    minutes: float = math.inf
    batch: int = 48
    muon_lr: float = 3e-3
    adamw_lr: float = 2e-3
    warmup_steps: int = 50
    hold: float = 0.4
    ema: float = 0.995
    clip: float = 1.0
    seed: int = 0
    text_lengths: tuple[tuple[int, float], ...] = ((16, 0.45), (32, 0.45), (64, 0.07), (128, 0.03))
    save_every_s: float = 300.0
    compile: bool = False


def sample_timesteps(count: int, generator: torch.Generator, logit_normal: float = 0.7) -> Tensor:
    """`count` times in (0, 1), shuffled: a share logit-normal (0.2, 1.1), the rest uniform, both stratified.

    Stratified: each of n equal slices of probability gives one draw, which lowers the variance of the loss.
    """
    first = round(count * logit_normal)

    def strata(n: int) -> Tensor:
        return (torch.arange(n) + torch.rand(n, generator=generator)) / max(n, 1)

    normal = torch.special.ndtri(strata(first).clamp(1e-4, 1 - 1e-4))
    times = torch.cat([torch.sigmoid(0.2 + 1.1 * normal), strata(count - first)]).clamp(1e-3, 1 - 1e-3)
    return times[torch.randperm(count, generator=generator)]


def learning_rate_factor(step: int, progress: float, warmup_steps: int, hold: float) -> float:
    """Factor of the learning rates: linear warm-up, hold, linear decay to zero. `progress` runs from 0 to 1."""
    decay = min(1.0, max(0.0, (1 - progress) / max(1 - hold, 1e-6)))
    return min(1.0, (step + 1) / max(warmup_steps, 1)) * decay


class Denoiser(nn.Module):
    """Transformer and text encoders as one module: captions and noisy latents in, velocity out."""

    def __init__(self, pipeline: FluxPipeline) -> None:
        super().__init__()
        self.transformer = pipeline.transformer
        self.text_encoder = pipeline.text_encoder
        self.text_encoder_2 = pipeline.text_encoder_2

    def forward(self, noisy: Tensor, times: Tensor, clip_ids: Tensor, t5_ids: Tensor) -> Tensor:
        """Velocity (B, tokens, 64) of packed latents (B, tokens, 64) at times (B,)."""
        dtype, device = noisy.dtype, noisy.device
        side = math.isqrt(noisy.shape[1])
        return self.transformer(
            hidden_states=noisy,
            timestep=times.to(dtype),
            pooled_projections=self.text_encoder(clip_ids).pooler_output.to(dtype),
            encoder_hidden_states=self.text_encoder_2(t5_ids)[0].to(dtype),
            txt_ids=torch.zeros(t5_ids.shape[1], 3, device=device, dtype=dtype),
            img_ids=FluxPipeline._prepare_latent_image_ids(1, side, side, device, dtype),
            return_dict=False,
        )[0]


@dataclass
class Example:
    """What the denoiser is given, and the target, for one batch."""

    noisy: Tensor
    target: Tensor
    times: Tensor
    clip_ids: Tensor
    t5_ids: Tensor


class ExampleMaker:
    """Turns composed pictures into flow-matching examples on a device."""

    def __init__(self, pipeline: FluxPipeline, latents: PatchLatents, device: torch.device, seed: int) -> None:
        self.pipeline, self.device = pipeline, device
        self.latents = latents.to(device)
        self.generator = torch.Generator().manual_seed(seed)

    def make(self, batch: Batch, text_length: int) -> Example:
        """Examples of a batch, with fresh noise and times."""
        x0 = self.latents.encode(batch.pictures.to(self.device))
        count, channels, height, width = x0.shape
        noise = torch.randn(x0.shape, generator=self.generator).to(self.device)
        # The transformer rounds t to its own dtype, so the mix uses the rounded one.
        times = sample_timesteps(count, self.generator).bfloat16().float().to(self.device)
        mix = times.view(-1, 1, 1, 1)
        packed = [
            FluxPipeline._pack_latents(part, count, channels, height, width)
            for part in ((1 - mix) * x0 + mix * noise, noise - x0)
        ]
        clip, t5 = self.pipeline.tokenizer, self.pipeline.tokenizer_2
        ids = [
            tokenizer(
                batch.captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            ).input_ids.to(self.device)
            for tokenizer, length in ((clip, clip.model_max_length), (t5, text_length))
        ]
        return Example(packed[0], packed[1], times, ids[0], ids[1])


@torch.no_grad()
def validation_losses(
    denoiser: Denoiser, pipeline: FluxPipeline, latents: PatchLatents, composer: Composer, rounds: int = 10
) -> dict[str, float]:
    """Mean flow-matching loss of each object over fixed pictures, captions, noise and times, in float32.

    Args:
        composer: freshly made with a seed that training does not use; two runs agree when it is the same.
        rounds: examples per object.
    """
    device = next(denoiser.parameters()).device
    maker = ExampleMaker(pipeline, latents, device, seed=1)
    count = len(composer.nouns)
    total = torch.zeros(count)
    for _ in range(rounds):
        example = maker.make(composer.batch(count, range(count)), text_length=32)
        with _attention(device):
            velocity = denoiser(example.noisy, example.times, example.clip_ids, example.t5_ids)
        total += (velocity - example.target).square().mean((1, 2)).cpu()
    return dict(zip(composer.nouns, (total / rounds).tolist(), strict=True))


class FlowTrainer:
    """Trains a pipeline's transformer and text encoders in bfloat16 with float32 masters and an average of them.

    The optimizer is Muon (Jordan et al. 2024) on the blocks' matrices and AdamW on everything else.
    """

    def __init__(self, pipeline: FluxPipeline, config: FlowConfig, device: torch.device) -> None:
        self.pipeline, self.config, self.device = pipeline, config, device
        self.denoiser = Denoiser(pipeline).to(device)
        self.names = [name for name, _ in self.denoiser.named_parameters()]
        self.masters = [p.detach().float().clone() for p in self.denoiser.parameters()]
        self.average = [p.clone() for p in self.masters]
        self.denoiser.bfloat16().train()
        if config.compile:
            pipeline.transformer.compile_repeated_blocks(dynamic=False)
        self.working = list(self.denoiser.parameters())
        self.optimizers = self._optimizers()
        self.step, self.samples, self.elapsed_s = 0, 0, 0.0

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        muon: list[Tensor] = []
        adamw: list[Tensor] = []
        for name, master in zip(self.names, self.masters, strict=True):
            block_matrix = "transformer_blocks" in name and master.ndim == 2 and ".linear." not in name
            (muon if block_matrix else adamw).append(master)
        return [
            torch.optim.Muon(
                muon,
                lr=self.config.muon_lr,
                momentum=0.95,
                weight_decay=0.0,
                ns_steps=4,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(adamw, lr=self.config.adamw_lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0 to 1."""
        return min(1.0, max(self.samples / self.config.samples, self.elapsed_s / 60 / self.config.minutes))

    def train_step(self, example: Example) -> float:
        """One optimizer step; returns the loss."""
        rare = dict(self.config.text_lengths).get(example.t5_ids.shape[1], 0) < 0.2
        with _attention(self.device), torch.compiler.set_stance("force_eager" if rare else "default"):
            velocity = self.denoiser(example.noisy.bfloat16(), example.times, example.clip_ids, example.t5_ids)
            loss = F.mse_loss(velocity.float(), example.target)
            loss.backward()
        for master, working in zip(self.masters, self.working, strict=True):
            master.grad = None if working.grad is None else working.grad.float()
            working.grad = None
        nn.utils.clip_grad_norm_(self.masters, self.config.clip)
        factor = learning_rate_factor(self.step, self.progress, self.config.warmup_steps, self.config.hold)
        for optimizer, rate in zip(self.optimizers, (self.config.muon_lr, self.config.adamw_lr), strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self.working, self.masters)
            # Early on a long average would be mostly the initial weights.
            decay = min(self.config.ema, (self.step + 1) / (self.step + 10))
            torch._foreach_lerp_(self.average, self.masters, 1 - decay)
        self.step += 1
        self.samples += len(example.times)
        return float(loss)

    def run(
        self, composer: Composer, latents: PatchLatents, checkpoint: Path, log: Callable[[str], None] = print
    ) -> None:
        """Train to the end of the budget, saving to `checkpoint` now and then and at the end."""
        # A resumed run must not see its first batches again.
        maker = ExampleMaker(self.pipeline, latents, self.device, self.config.seed + self.step)
        composer.rng.seed(f"{self.config.seed}-{self.step}")
        lengths = _draw_lengths(self.config, random.Random(self.config.seed + self.step))
        before, started, first_sample = self.elapsed_s, time.monotonic(), self.samples
        saved, logged, losses = started, started, []
        while self.progress < 1:
            losses.append(self.train_step(maker.make(composer.batch(self.config.batch), next(lengths))))
            now = time.monotonic()
            self.elapsed_s = before + now - started
            if now - logged > 20 or self.progress >= 1:
                rate = (self.samples - first_sample) / (now - started)
                eta = self.elapsed_s * (1 - self.progress) / max(self.progress, 1e-6)
                mean = sum(losses) / len(losses)
                log(
                    f"transformer {100 * self.progress:5.1f} %  step {self.step}  {self.samples} samples  "
                    f"{rate:.1f} samples/s  loss {mean:.4f}  ETA {eta / 60:.1f} min"
                )
                logged, losses = now, []
            if now - saved > self.config.save_every_s:
                self.save(checkpoint)
                saved = now
        self.save(checkpoint)

    def save(self, path: Path) -> None:
        """Write everything that `restore` needs."""
        state = {
            "masters": self.masters,
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": (self.step, self.samples, self.elapsed_s),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint of the same model."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        with torch.no_grad():
            torch._foreach_copy_(self.masters, state["masters"])
            torch._foreach_copy_(self.average, state["average"])
            torch._foreach_copy_(self.working, self.masters)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.samples, self.elapsed_s = state["progress"]

    def finish(self) -> FluxPipeline:
        """The pipeline in float32 with the averaged weights."""
        self.denoiser.float().eval()
        with torch.no_grad():
            torch._foreach_copy_(list(self.denoiser.parameters()), self.average)
        return self.pipeline


def _draw_lengths(config: FlowConfig, rng: random.Random) -> Iterator[int]:
    lengths, weights = zip(*config.text_lengths, strict=True)
    while True:
        yield rng.choices(lengths, weights)[0]


def _attention(device: torch.device) -> sdpa_kernel:
    """The plain kernel on a CPU, where torch 2.13's fused backward is slower; all of them elsewhere."""
    backends = [SDPBackend.MATH]
    if device.type != "cpu":
        backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(backends)
