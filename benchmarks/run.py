"""What serving adds, and what the cache brings: `python -m benchmarks.run`, ten minutes to half an hour.

`make bench` runs it, and the benchmarks of answers, of files and of a start.
Writes docs/benchmarks/README.md, and the speeds' figures in configs/embedded.yaml.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks import cache, hostile, pictures, serving, video
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.pipeline.environment import quiet_libraries

PAGE = BUNDLE_ROOT / "docs" / "benchmarks" / "README.md"
CONFIG = BUNDLE_ROOT / "configs" / "embedded.yaml"

TEXT = """\
# Benchmarks

Written by `python -m benchmarks.run` ({date}), a part of `make bench`. Every ratio is of
measurements taken side by side in one run.

{machine}

## What serving adds

The embedded model with `configs/embedded.yaml`; one client; a direct call of the same pipeline, the same under
`torch.inference_mode` as the server makes it, and `POST /generate` in turn, {overhead.requests} of each. Each of them
encodes the prompt (`limits.prompt_cache_bytes: 0`).

| | measured | goal |
|---|---|---|
| direct call, median | {overhead.direct_s:.4f} s | |
| direct call under inference mode, median | {overhead.inference_mode_s:.4f} s | |
| `POST /generate`, median | {overhead.served_s:.4f} s | |
| ratio to the direct call | {ratio:.3f} | at most 1.03 |
| ratio to the direct call under inference mode, median of pairs | {strict_ratio} | at most {ratio_goal} |
| CPU of the pipeline's thread, ratio to that of the same direct call | {overhead.thread_cpu_ratio:.3f} | |
| waits of the pipeline's thread per request | {overhead.thread_waits:.1f} | |
| CPU of everything but the pipeline's thread, per request | {overhead.http_cpu_ms:.1f} ms | |

## Saturation

{saturation.clients} clients at once, {saturation.pictures} pictures in all; the bare loops run half before, half after.

| | measured | goal |
|---|---|---|
| share of time the pipeline's thread is busy | {busy:.1f} % | at least 99.5 % |
| pictures per minute, served | {saturation.served_per_minute:.1f} | at least the bare loop's |
| pictures per minute, bare loop | {saturation.direct_per_minute:.1f} | |
| pictures per minute, bare loop under inference mode | {saturation.inference_mode_per_minute:.1f} | |

## Start and memory

| | measured | goal |
|---|---|---|
| from `bentoml serve` to ready, {starts} starts, warm disk | {ready} | within 20 s |
| resident memory of the worker when ready | {memory.ready_mb:.0f} MB | |
| after 40 requests of mixed sizes and step counts | {memory.after_40_mb:.0f} MB | |
| after 200 | {memory.after_200_mb:.0f} MB | flat |

## Bodies made to be slow

Each body comes in a loop from one client for {hostile_s:g} s, and is refused; meanwhile another polls `/livez`.

| body | times refused | answer, bytes | `/livez` median, ms | worst, ms |
|---|---|---|---|---|
{hostile_rows}

Goal: worst under 50 ms.

## Pictures made to be slow

Likewise, each file as `image_urls`; meanwhile a third client draws 4 steps from an honest picture. Memory is the most
that all processes of the server take above what they had before.

| file | bytes | times refused | memory, MB | honest request, worst, s | `/livez` median, ms | worst, ms |
|---|---|---|---|---|---|---|
{hostile_file_rows}

Goal: refused within 1 s of CPU, under 200 MB, worst under 50 ms.

## Encoding a video

49 frames of 832 x 480 px to MP4, 235 MB as floats: medians of {video_runs} runs in processes of their own, in turn.
PyAV alone turns all frames to bytes and encodes them with the same codec options.

| | s | peak memory above the frames, MB | file, MB |
|---|---|---|---|
{video_rows}

An event loop beside the encoding thread wakes late by {loop_ms:.1f} ms (99th percentile). Goals: at most 1.2 times
PyAV alone, and under 50 ms.

## Reading a picture

An upload of {pictures.SIDE} x {pictures.SIDE} px, medians of {pictures.RUNS} runs in turn: PIL alone from the file's
bytes, and the server from a data URI (base64, checks, decoding, SHA-256).

| | file, MB | PIL alone, ms | served, ms |
|---|---|---|---|
{picture_rows}

## The cache on the embedded model

{prompts} prompts x {seeds} seeds, {steps} steps at 96 x 96 unless the speed has its own, against the uncached picture
of the same prompt and seed ({lossless:.3f} s): medians, and the worst decile of the qualities. The named speeds are
those of `configs/embedded.yaml`, whose figures this run wrote. Below them, what **fewer steps without a cache** give.

| setting | s | speed-up | steps reused | PSNR, dB | worst decile | SSIM | worst decile |
|---|---|---|---|---|---|---|---|
{rows}

{verdict}

Goals: `high` at least 1.5x with a median SSIM of at least .99, `fast` at least 2.0x with at least .97.

## Changing settings between requests

Every request brings its own settings. `prepare` is the transition alone; beside it, what a generation of 6 steps takes
longer after a change than after one with its own settings (noise included). Goal: under 2 ms.

| from one to the other and back | `prepare`, ms | a generation longer by, ms |
|---|---|---|
{switches}

## Other pages

| page | measured |
|---|---|
| [GPU](../gpu.md) | FLUX.1-dev and Qwen-Image at full size on an H200 |
| [torch.compile](compile.md) | speed-up and start time of `compile` |
| [Quantisation](quantization.md) | size, quality and seconds of each weight type |
| [LoRAs](loras.md) | switching and drawing with LoRAs |
| [Prompt cache](prompt-cache.md) | seconds saved by kept prompt embeddings |
| [Answers](answers.md) | CPU and wall time that serving adds to a picture |
| [Writing files](files.md) | time, size and likeness of each image format, encoder and x264 preset |
| [Ranks](ranks.md) | one forward pass on several processes |
| [Followers](job-events.md) | event streams of a job |
| [Previews](previews.md) | previews of a job |
| [Queue order](queue-order.md) | waits under `server.queue_order` |
| [Watched floors](floors.md) | false alarms, and outputs until a missed floor is found and a repaired one comes back |
| [Live quality](live-quality.md) | a floor that trips on a live server and holds again: shadow runs, and the theory |
| [Response times](responsive.md) | answers of other routes during a generation |
| [cache_dit.serve](vs-cache-dit-serve.md) | the old server beside this one: times, CPU, memory, clients that leave |
| [Soak](soak.md) | ten minutes of four times the traffic that fits: what grows, what is lost |
| [Start](start.md) | seconds and CPU of each part of a start, and of each library's import |
| [Test times](test-times.md) | duration of `make test` by module |
"""


def main() -> None:
    """Measure, print and write the page."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--page", type=Path, default=PAGE, help="file to write instead, configs/ left alone (default: %(default)s)"
    )
    page: Path = arguments.parse_args().page
    logging.getLogger("cache_dit_serving").setLevel(logging.WARNING)
    quiet_libraries()
    say = Progress().say
    settings = load_settings({})  # the embedded model's, whatever the environment says
    bare = serving.BarePipeline(settings)
    starts = []
    say("starts")
    for _ in range(2):
        with serving.server() as running:
            starts.append(running.ready_s)
    with serving.server(serving.EACH_ENCODED) as running:
        starts.append(running.ready_s)
        say("what serving adds")
        overhead = serving.overhead(bare, running)
        say("saturation")
        saturation = serving.saturation(bare, running)
    with serving.server() as running:
        say("memory")
        memory = serving.memory(running)
        say("bodies and pictures made to be slow")
        refused = hostile.measure(running)
        refused_files = hostile.measure_files(running)
    say("encoding a video")
    clips, loop_ms = video.measure(), video.loop_p99_ms()
    say("the cache, by settings and by fewer steps")
    loaded = assemble(settings, lambda what: None)
    switches = cache.switching(loaded)
    quality = cache.measure(loaded, say)
    say("reading a picture")
    read = pictures.measure()
    date = datetime.now(UTC).date().isoformat()
    if page == PAGE:
        conditions = f"{machine()} {len(cache.PROMPTS)} prompts x {len(cache.SEEDS)} seeds. {date}"
        cache.write_figures(CONFIG, quality, conditions)
    text = TEXT.format(
        date=date,
        machine=machine(),
        overhead=overhead,
        ratio=overhead.served_s / overhead.direct_s,
        strict_ratio=serving.with_interval(overhead.ratio),
        ratio_goal=serving.RATIO_GOAL,
        saturation=saturation,
        busy=saturation.busy_share * 100,
        starts=len(starts),
        ready=", ".join(f"{seconds:.1f} s" for seconds in starts),
        memory=memory,
        hostile_s=hostile.SECONDS,
        video_runs=video.RUNS,
        video_rows=video.rows(clips),
        pictures=pictures,
        picture_rows=pictures.rows(read),
        loop_ms=loop_ms,
        hostile_rows=hostile.rows(refused),
        hostile_file_rows=hostile.file_rows(refused_files),
        prompts=len(cache.PROMPTS),
        seeds=len(cache.SEEDS),
        steps=cache.STEPS,
        lossless=quality.lossless_s,
        rows="\n".join(
            f"| {row.name} | {row.seconds:.3f} | {row.speedup:.2f} | {row.cached_steps:.1f} | {row.psnr:.1f} "
            f"| {row.psnr_worst_decile:.1f} | {row.ssim:.4f} | {row.ssim_worst_decile:.4f} |"
            for row in quality.rows
        ),
        verdict=verdict(quality),
        switches="\n".join(
            f"| {switch.name} | {switch.prepare_ms:.3f} | {switch.generation_ms:+.2f} |" for switch in switches
        ),
    )
    page.write_text(text, encoding="utf-8")
    print(text)


class Progress:
    """Lines on standard error: each part as it begins, with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, part: str) -> None:
        print(f"{time.monotonic() - self._began:5.0f} s  {part}", file=sys.stderr, flush=True)


def verdict(quality: cache.Quality) -> str:
    """In words, where fewer steps win: for each speed, the fewer-steps run that is at least as fast."""
    fewer = [row for row in quality.rows if row.settings is None]
    sentences = []
    for row in quality.rows:
        if not row.name.startswith("`") or " " in row.name:
            continue
        as_fast = [other for other in fewer if other.speedup >= row.speedup]
        rival = min(as_fast, key=lambda other: other.speedup, default=None)
        if rival is None:
            sentences.append(f"{row.name} is faster than any of the fewer-steps runs.")
            continue
        better = "**fewer steps win**" if rival.psnr >= row.psnr else "the cache wins"
        sentences.append(
            f"Against {row.name} ({row.speedup:.2f}x, {row.psnr:.1f} dB) stands {rival.name} "
            f"({rival.speedup:.2f}x, {rival.psnr:.1f} dB): {better}."
        )
    return "\n".join(
        [
            *sentences,
            "This model's trajectories are nearly straight, which is kind to both. Other models differ: measure yours,",
            "with the fewer-steps baseline beside the cache (`POST /compare` does so for one picture).",
        ]
    )


def machine() -> str:
    """The hardware and versions that the figures hold for."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    gpus = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "no GPU"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "cache-dit", "bentoml"))
    return f"Hardware: {os.cpu_count()} cores ({cpu}), {gpus}. Python {platform.python_version()}, {versions}."


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []


if __name__ == "__main__":
    main()
