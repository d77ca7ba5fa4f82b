"""The sections of docs/benchmarks/README.md: each measures, and returns its text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from benchmarks import cache, hostile, pictures, serving, video
from benchmarks.machine import machine
from benchmarks.progress import say
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.pipeline.protocol import Loaded

STARTS = 3
LIVEZ_MS = 50
"""Longest that `/livez` may take while requests made to be slow come in."""
REFUSED_MB = 200
"""Most memory that pictures made to be slow may take."""


@dataclass(frozen=True)
class Bench:
    """The pipelines that the sections share, each loaded when it is first asked for."""

    figures: Path | None
    """Configuration that takes the figures of its speeds; None to write none."""

    @cached_property
    def settings(self) -> Settings:
        """The embedded model's, whatever the environment says."""
        return load_settings({})

    @cached_property
    def bare(self) -> serving.BarePipeline:
        return serving.BarePipeline(self.settings)

    @cached_property
    def loaded(self) -> Loaded:
        return assemble(self.settings, lambda what: None)


def overhead(bench: Bench) -> str:
    """The direct call of a pipeline beside the served one."""
    bare = bench.bare
    with serving.server(serving.EACH_ENCODED) as running:
        added = serving.overhead(bare, running, progress=say)
    return f"""
The embedded model with `configs/embedded.yaml`; one client; a direct call of the same pipeline, the same under
`torch.inference_mode` as the server makes it, and `POST /generate` in turn, {added.requests} of each. Each of them
encodes the prompt (`limits.prompt_cache_bytes: 0`).

| | measured | goal |
|---|---|---|
| direct call, median | {added.direct_s:.4f} s | |
| direct call under inference mode, median | {added.inference_mode_s:.4f} s | |
| `POST /generate`, median | {added.served_s:.4f} s | |
| ratio to the direct call | {added.served_s / added.direct_s:.3f} | at most 1.03 |
| ratio to the direct call under inference mode, median of pairs | {serving.with_interval(added.ratio)} \
| at most {serving.RATIO_GOAL} |
| CPU of the pipeline's thread, ratio to that of the same direct call | {added.thread_cpu_ratio:.3f} | |
| waits of the pipeline's thread per request | {added.thread_waits:.1f} | |
| CPU of everything but the pipeline's thread, per request | {added.http_cpu_ms:.1f} ms | |
"""


def saturation(bench: Bench) -> str:
    """Eight clients at once beside bare loops."""
    bare = bench.bare
    with serving.server(serving.EACH_ENCODED) as running:
        full = serving.saturation(bare, running, progress=say)
    return f"""
{full.clients} clients at once, {full.pictures} pictures in all; the bare loops run half before, half after.

| | measured | goal |
|---|---|---|
| share of time the pipeline's thread is busy | {full.busy_share * 100:.1f} % | at least 99.5 % |
| pictures per minute, served | {full.served_per_minute:.1f} | at least the bare loop's |
| pictures per minute, bare loop | {full.direct_per_minute:.1f} | |
| pictures per minute, bare loop under inference mode | {full.inference_mode_per_minute:.1f} | |
"""


def start(bench: Bench) -> str:
    """Seconds to ready, and the memory of the worker over many requests."""
    ready = []
    for _ in range(STARTS - 1):
        with serving.server() as running:
            ready.append(running.ready_s)
    with serving.server() as running:
        ready.append(running.ready_s)
        say(f"ready after {', '.join(f'{seconds:.1f} s' for seconds in ready)}; 200 requests")
        memory = serving.memory(running)
    return f"""
| | measured | goal |
|---|---|---|
| from `bentoml serve` to ready, {STARTS} starts, warm disk | {", ".join(f"{seconds:.1f} s" for seconds in ready)} \
| within 20 s |
| resident memory of the worker when ready | {memory.ready_mb:.0f} MB | |
| after 40 requests of mixed sizes and step counts | {memory.after_40_mb:.0f} MB | |
| after 200 | {memory.after_200_mb:.0f} MB | flat |
"""


def bodies(bench: Bench) -> str:
    """Bodies that take long to refuse."""
    with serving.server() as running:
        refused = hostile.measure(running)
    late = [one.name for one in refused if one.livez_worst_ms >= LIVEZ_MS]
    return f"""
Each body comes in a loop from one client for {hostile.SECONDS:g} s, and is refused; meanwhile another polls `/livez`.

| body | times refused | answer, bytes | `/livez` median, ms | worst, ms |
|---|---|---|---|---|
{hostile.rows(refused)}

Goal: worst under {LIVEZ_MS} ms, {missed_by(late)}
"""


def refused_pictures(bench: Bench) -> str:
    """Pictures that take long to refuse, or much memory."""
    with serving.server() as running:
        refused = hostile.measure_files(running)
    late = [one.refused.name for one in refused if one.refused.livez_worst_ms >= LIVEZ_MS]
    large = [one.refused.name for one in refused if one.memory_mb >= REFUSED_MB]
    return f"""
Each file comes as `image_urls` in a loop from one client for {hostile.SECONDS:g} s, and is refused; meanwhile another
polls `/livez`, and a third draws 4 steps from an honest picture. Memory is the most that all processes of the server
take above what they had before.

| file | bytes | times refused | memory, MB | honest request, worst, s | `/livez` median, ms | worst, ms |
|---|---|---|---|---|---|---|
{hostile.file_rows(refused)}

Goals: memory under {REFUSED_MB} MB, {missed_by(large)} `/livez` under {LIVEZ_MS} ms, {missed_by(late)}
As base64 a file of 12 MB makes a body of 16 MB.
"""


def written_video(bench: Bench) -> str:
    """A clip to MP4, beside PyAV alone."""
    clips, loop_ms = video.measure(), video.loop_p99_ms()
    floats_mb = video.FRAMES * video.HEIGHT * video.WIDTH * 3 * 4 / 1e6
    return f"""
{video.FRAMES} frames of {video.WIDTH} x {video.HEIGHT} px to MP4, {floats_mb:.0f} MB as floats: medians of {video.RUNS}
runs in processes of their own, in turn. PyAV alone turns all frames to bytes and encodes them with the same codec
options.

| | s | peak memory above the frames, MB | file, MB |
|---|---|---|---|
{video.rows(clips)}

An event loop beside the encoding thread wakes late by {loop_ms:.1f} ms (99th percentile). Goals: at most 1.2 times
PyAV alone, and under 50 ms.
"""


def read_picture(bench: Bench) -> str:
    """An uploaded picture, beside PIL alone."""
    return f"""
An upload of {pictures.SIDE} x {pictures.SIDE} px, medians of {pictures.RUNS} runs in turn: PIL alone from the file's
bytes, and the server from a data URI (base64, checks, decoding, SHA-256).

| | file, MB | PIL alone, ms | served, ms |
|---|---|---|---|
{pictures.rows(pictures.measure())}
"""


def cached(bench: Bench) -> str:
    """The speeds, other settings and fewer steps, against uncached pictures; writes the speeds' figures."""
    quality = cache.measure(bench.loaded, say)
    prompts, seeds = len(cache.PROMPTS), len(cache.SEEDS)
    if bench.figures:
        conditions = f"{machine()} {prompts} prompts x {seeds} seeds. {datetime.now(UTC).date()}"
        cache.write_figures(bench.figures, quality, conditions)
    return f"""
{prompts} prompts x {seeds} seeds, {cache.STEPS} steps at 96 x 96 unless the speed has its own, against the uncached
picture of the same prompt and seed ({quality.lossless_s:.3f} s): medians, and the worst decile of the qualities. The
named speeds are those of `configs/embedded.yaml`, whose figures this run wrote. Below them, what **fewer steps without
a cache** give.

| setting | s | speed-up | steps reused | PSNR, dB | worst decile | SSIM | worst decile |
|---|---|---|---|---|---|---|---|
{cache.rows(quality)}

{cache.verdict(quality)}

Goals: `high` at least 1.5x with a median SSIM of at least .99, `fast` at least 2.0x with at least .97.
"""


def switches(bench: Bench) -> str:
    """The cost of other settings from one request to the next."""
    measured = "\n".join(
        f"| {switch.name} | {switch.prepare_ms:.3f} | {switch.generation_ms:+.2f} |"
        for switch in cache.switching(bench.loaded)
    )
    return f"""
Every request brings its own settings. `prepare` is the transition alone; beside it, what a generation of 6 steps takes
longer after a change than after one with its own settings (noise included). Goal: under 2 ms.

| from one to the other and back | `prepare`, ms | a generation longer by, ms |
|---|---|---|
{measured}
"""


def missed_by(names: list[str]) -> str:
    """Return the end of a sentence on a goal: the rows that miss it."""
    return f"missed by {', '.join(names)}." if names else "met by all."


class Section(NamedTuple):
    """A part of the page."""

    title: str
    measure: Callable[[Bench], str]


SECTIONS = {
    "overhead": Section("What serving adds", overhead),
    "saturation": Section("Saturation", saturation),
    "start": Section("Start and memory", start),
    "bodies": Section("Bodies made to be slow", bodies),
    "refused": Section("Pictures made to be slow", refused_pictures),
    "video": Section("Encoding a video", written_video),
    "picture": Section("Reading a picture", read_picture),
    "cache": Section("The cache on the embedded model", cached),
    "switches": Section("Changing settings between requests", switches),
}
"""By the name that the command takes, in their order on the page."""
