"""What quantised weights cost and save: `python -m benchmarks.quantization`, about three minutes on a quiet core.

Writes docs/benchmarks/quantization.md.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.machine import machine
from cache_dit_serving.config.acceleration import QuantizeSettings
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.measure.distances.pictures import psnr, ssim
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.pipeline.environment import quiet_libraries
from cache_dit_serving.pipeline.protocol import Loaded, Sampled, Unwatched
from cache_dit_serving.pipeline.quantize import bytes_of, usable_types
from cache_dit_serving.pipeline.runner import PipelineRunner
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest

PAGE = BUNDLE_ROOT / "docs" / "benchmarks" / "quantization.md"
ROUNDS = 7
PROMPTS = ("a robot on a yellow background", "a red apple on a blue background", "a cat on a green background")
WHOLE = "whole"
TEXT = """\
# What quantised weights cost and save

Written by `python -m benchmarks.quantization` ({date}): the embedded model in float32 (a transformer of 3.8 million
parameters), its transformer quantised by `quantize.quant_type`, {prompts} pictures of 28 steps. PSNR and SSIM: to the
picture of the whole weights with the same cache, the worst of them. Seconds: medians of {rounds} rounds in turn.

{machine} torchao {torchao}.

On a CPU quantised weights save memory and no time. GPUs have kernels for them: [float8 on an H200](../gpu.md).

| weights | cache | transformer, MB | PSNR, dB | SSIM | cached steps | seconds |
|---|---|---|---|---|---|---|
{rows}
"""


def draw(loaded: Loaded, prompt: str, speed: str) -> tuple[Sampled, float]:
    request = GenerateRequest.model_validate({"prompt": prompt, "seed": 1, "speed": speed})
    call = plan(resolve(request, loaded.model)).call
    begun = time.perf_counter()
    drawn = loaded.runner.sample(replace(call, keep_floats=True), Unwatched())
    return drawn, time.perf_counter() - begun


def row(name: str, loaded: Loaded, speed: str, whole: Loaded, taken: list[float]) -> str:
    drawn = [draw(loaded, prompt, speed)[0] for prompt in PROMPTS]
    told = loaded.runner.facts.quantized
    size = told[0].bytes if told else _bytes(whole)
    quality = "| | "
    if name != WHOLE:
        wholes = [draw(whole, prompt, speed)[0] for prompt in PROMPTS]
        pairs = [(one.media.array, other.media.array) for one, other in zip(drawn, wholes, strict=True)]
        quality = f"| {min(psnr(*pair) for pair in pairs):.1f} | {min(ssim(*pair) for pair in pairs):.4f} "
    steps = sum(each.record.cache.cached_steps for each in drawn) / len(drawn)
    return f"| {name} | {speed} | {size / 1e6:.1f} {quality}| {steps:.1f} of 28 | {statistics.median(taken):.3f} |"


def _bytes(whole: Loaded) -> int:
    assert isinstance(whole.runner, PipelineRunner)
    pipe: Any = whole.runner._part.pipe
    return bytes_of(pipe.transformer)


def main() -> None:
    """Measure, and write the page."""
    quiet_libraries()
    settings = load_settings({"CACHE_DIT_SERVING__SPEEDS__WARM_UP": "false"})
    servers = {WHOLE: assemble(settings, lambda stage: None)}
    for name in usable_types(torch.device("cpu")):
        quantised = settings.model_copy(update={"quantize": QuantizeSettings(quant_type=name)})
        servers[name] = assemble(quantised, lambda stage: None)
    taken: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for name, loaded in servers.items():
            for speed in ("lossless", "balanced"):
                taken.setdefault((name, speed), []).append(draw(loaded, PROMPTS[0], speed)[1])
    rows = [row(name, servers[name], speed, servers[WHOLE], times) for (name, speed), times in taken.items()]
    text = TEXT.format(
        date=datetime.now(UTC).date(),
        rounds=ROUNDS,
        prompts=len(PROMPTS),
        machine=machine(),
        torchao=version("torchao"),
        rows="\n".join(rows),
    )
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
