"""The cache against the uncached pipeline on the embedded model, with fewer steps beside it as the honest baseline.

Every setting draws the same prompts and seeds in the same process, prompt by prompt in turn, so that a change of the
machine's speed reaches them all alike.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.quality import Pixels, psnr, ssim
from cache_dit_serving.config import CacheSettings, Settings
from cache_dit_serving.pipeline.arguments import plan
from cache_dit_serving.pipeline.runner import PipelineRunner
from cache_dit_serving.schemas import GenerateRequest

OBJECTS = (
    *("red apple", "banana", "strawberry", "watermelon", "carrot", "hamburger", "mushroom", "cat", "dog", "panda"),
    *("frog", "penguin", "owl", "ladybug", "sunflower", "cactus", "star", "rainbow", "red car", "rocket"),
    *("sailboat", "house", "crown", "robot"),
)
COLOURS = ("blue", "white", "green", "purple", "orange", "gray", "pink", "yellow")
PROMPTS = tuple(f"a {name} on a {COLOURS[index % len(COLOURS)]} background" for index, name in enumerate(OBJECTS))
STEPS = 28


@dataclass(frozen=True)
class Contender:
    name: str
    cache: CacheSettings | None = None
    steps: int = STEPS


def cached(name: str, **fields: Any) -> Contender:
    return Contender(name, CacheSettings(Fn_compute_blocks=1, **fields))


CONTENDERS = (
    cached("F1 B0 W8 R0.08", max_warmup_steps=8, residual_diff_threshold=0.08),
    cached("F1 B0 W8 R0.24", max_warmup_steps=8, residual_diff_threshold=0.24),
    cached("F1 B0 W4 R0.24", max_warmup_steps=4, residual_diff_threshold=0.24),
    cached("F1 B0 W4 R0.4", max_warmup_steps=4, residual_diff_threshold=0.4),
    cached("F1 B0 W4 R0.24, TaylorSeer 1", max_warmup_steps=4, residual_diff_threshold=0.24, enable_taylorseer=True),
    cached("F1 B0 W2 R0.8", max_warmup_steps=2, residual_diff_threshold=0.8),
    Contender("no cache, 20 steps", steps=20),
    Contender("no cache, 14 steps", steps=14),
    Contender("no cache, 10 steps", steps=10),
)


@dataclass(frozen=True)
class Row:
    name: str
    seconds: float
    speedup: float
    cached_steps: float
    psnr: float
    ssim: float
    worst_ssim: float


def measure(settings: Settings) -> tuple[float, list[Row]]:
    """Median seconds of the uncached pipeline at 28 steps, and a row for each contender."""
    runners = [_runner(settings, contender) for contender in (Contender("no cache"), *CONTENDERS)]
    seconds: list[list[float]] = [[] for _ in runners]
    qualities: list[list[tuple[float, float]]] = [[] for _ in runners]
    cached_steps: list[list[int]] = [[] for _ in runners]
    for seed, prompt in enumerate(PROMPTS):
        reference: Pixels | None = None
        for index, runner in enumerate(runners):
            call = plan(GenerateRequest(prompt=prompt, seed=seed), runner.traits, runner.settings)
            began = time.perf_counter()
            image = runner.draw(call, seed, lambda done: None)
            seconds[index].append(time.perf_counter() - began)
            reference = image.pixels if reference is None else reference
            qualities[index].append((psnr(image.pixels, reference), ssim(image.pixels, reference)))
            cached_steps[index].append(image.cache.cached_steps)
    uncached = statistics.median(seconds[0])
    rows = [
        Row(
            name=contender.name,
            seconds=statistics.median(seconds[index]),
            speedup=statistics.median(plain / fast for plain, fast in zip(seconds[0], seconds[index], strict=True)),
            cached_steps=statistics.mean(cached_steps[index]),
            psnr=statistics.mean(quality[0] for quality in qualities[index]),
            ssim=statistics.mean(quality[1] for quality in qualities[index]),
            worst_ssim=min(quality[1] for quality in qualities[index]),
        )
        for index, contender in enumerate(CONTENDERS, start=1)
    ]
    return uncached, rows


def _runner(settings: Settings, contender: Contender) -> PipelineRunner:
    defaults = settings.defaults.model_copy(update={"num_inference_steps": contender.steps})
    return PipelineRunner(
        settings.model_copy(update={"cache": contender.cache, "defaults": defaults}), lambda what: None
    )
