"""The speeds against the uncached pipeline on the embedded model, with fewer steps beside them as the honest baseline,
and the cost of changing settings between requests.

Every contender draws the same prompts and seeds on the same pipeline, picture by picture in turn, so that a change of
the machine's speed reaches them all alike.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cache_dit_serving.caching.derived import upstream_settings
from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.caching.speeds import SPEEDS, WITHOUT_CACHE, CacheChoice
from cache_dit_serving.measure.distances.pictures import psnr, ssim
from cache_dit_serving.measure.search.prompt_lists import own_prompts
from cache_dit_serving.pipeline.protocol import Loaded, Sampled, Unwatched
from cache_dit_serving.pipeline.runner import PipelineRunner
from cache_dit_serving.planning.example import example_of
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest

PROMPTS = own_prompts()
SEEDS = (0, 1)
STEPS = 28
FEWER_STEPS = (20, 16, 14, 12, 10, 8)


@dataclass(frozen=True)
class Contender:
    name: str
    choice: CacheChoice
    steps: int = STEPS


@dataclass(frozen=True)
class Row:
    """Medians over every prompt and seed; the worst decile is the tenth percentile."""

    name: str
    settings: CacheSettings | None
    steps: int
    seconds: float
    speedup: float
    cached_steps: float
    psnr: float
    psnr_worst_decile: float
    ssim: float
    ssim_worst_decile: float


@dataclass(frozen=True)
class Quality:
    lossless_s: float
    rows: list[Row]


def contenders(loaded: Loaded) -> list[Contender]:
    speeds = [
        Contender(f"`{speed}`", CacheChoice(rung.settings, speed), rung.steps or STEPS)
        for speed, rung in loaded.model.speeds.rungs.items()
        if rung.settings is not None
    ]
    balanced = loaded.model.speeds.rungs["balanced"].settings
    assert balanced is not None
    others = {
        "cache-dit's command-line default": upstream_settings(STEPS),
        "`balanced` without TaylorSeer": balanced.overridden({"enable_taylorseer": False}),
        "`balanced` as DBPrune": balanced.overridden({"cache_type": "DBPrune"}),
    }
    speeds += [Contender(name, CacheChoice(settings, "custom")) for name, settings in others.items()]
    return speeds + [Contender(f"no cache, {steps} steps", WITHOUT_CACHE, steps) for steps in FEWER_STEPS]


def measure(loaded: Loaded, say: Callable[[str], None]) -> Quality:
    """A row for each contender, against the uncached picture of the same prompt and seed.

    Args:
        say: told as each prompt begins.
    """
    all_contenders = contenders(loaded)
    lossless_s: list[float] = []
    drawn: list[list[tuple[float, float, float, float, int]]] = [[] for _ in all_contenders]
    for number, prompt in enumerate(PROMPTS, 1):
        say(f"prompt {number} of {len(PROMPTS)}")
        for seed in SEEDS:
            reference = draw(loaded, prompt, seed, WITHOUT_CACHE, STEPS)
            lossless_s.append(reference.record.seconds)
            for index, contender in enumerate(all_contenders):
                image = draw(loaded, prompt, seed, contender.choice, contender.steps)
                distance = (
                    psnr(image.media.array, reference.media.array),
                    ssim(image.media.array, reference.media.array),
                )
                ratio = reference.record.seconds / image.record.seconds
                drawn[index].append((image.record.seconds, ratio, *distance, image.record.cache.cached_steps))
    rows = []
    for contender, results in zip(all_contenders, drawn, strict=True):
        seconds, ratios, psnrs, ssims, cached = (list(column) for column in zip(*results, strict=True))
        rows.append(
            Row(
                name=contender.name,
                settings=contender.choice.settings,
                steps=contender.steps,
                seconds=statistics.median(seconds),
                speedup=statistics.median(ratios),
                cached_steps=statistics.mean(cached),
                psnr=statistics.median(psnrs),
                psnr_worst_decile=worst_decile(psnrs),
                ssim=statistics.median(ssims),
                ssim_worst_decile=worst_decile(ssims),
            )
        )
    return Quality(statistics.median(lossless_s), rows)


def draw(loaded: Loaded, prompt: str, seed: int, choice: CacheChoice, steps: int) -> Sampled:
    planned = plan(resolve(GenerateRequest(prompt=prompt, num_inference_steps=steps, speed="lossless"), loaded.model))
    return loaded.runner.sample(replace(planned.call, seed=seed, cache=choice, keep_floats=True), Unwatched())


def worst_decile(values: list[float]) -> float:
    return statistics.quantiles(values, n=10, method="inclusive")[0]


@dataclass(frozen=True)
class Switch:
    """The cost of going from one setting to another: medians over many changes, in ms."""

    name: str
    prepare_ms: float
    """Of `PipelineCache.prepare` alone."""
    generation_ms: float
    """What a generation takes longer after a change than after itself, over 6 steps."""


def switching(loaded: Loaded, rounds: int = 60) -> list[Switch]:
    """Prepare and draw alternating between two settings, and each by itself, in turn."""
    runner = loaded.runner
    assert isinstance(runner, PipelineRunner)
    balanced = loaded.model.speeds.rungs["balanced"].settings
    assert balanced is not None
    pairs = {
        "other settings (`balanced` and `fast`)": (balanced, loaded.model.speeds.rungs["fast"].settings),
        "another calibrator (TaylorSeer and DMD)": (balanced, balanced.overridden({"enable_dmd": True})),
        "cache on and off": (balanced, None),
        "DBCache and DBPrune": (balanced, balanced.overridden({"cache_type": "DBPrune"})),
    }
    results = []
    for name, (first, second) in pairs.items():
        prepare: list[float] = []
        extra: list[float] = []
        for _ in range(rounds):
            for one, other in ((first, second), (second, first)):
                _timed_draw(loaded, one)
                after_itself = _timed_draw(loaded, one)
                _timed_draw(loaded, other)
                extra.append(_timed_draw(loaded, one) - after_itself)
                began = time.perf_counter()
                runner._cache.prepare(other, STEPS, passes=1)
                prepare.append(time.perf_counter() - began)
        results.append(Switch(name, statistics.median(prepare) * 1000, statistics.median(extra) * 1000))
    return results


def _timed_draw(loaded: Loaded, settings: CacheSettings | None) -> float:
    choice = WITHOUT_CACHE if settings is None else CacheChoice(settings, "custom")
    request, inputs = example_of(loaded.model, num_inference_steps=6, speed="lossless")
    call = replace(plan(resolve(request, loaded.model), inputs).fitted().call, seed=0, cache=choice)
    began = time.perf_counter()
    loaded.runner.sample(call, Unwatched())
    return time.perf_counter() - began


def rows(quality: Quality) -> str:
    """Return the table's lines, a contender each."""
    return "\n".join(
        f"| {row.name} | {row.seconds:.3f} | {row.speedup:.2f} | {row.cached_steps:.1f} | {row.psnr:.1f} "
        f"| {row.psnr_worst_decile:.1f} | {row.ssim:.4f} | {row.ssim_worst_decile:.4f} |"
        for row in quality.rows
    )


def verdict(quality: Quality) -> str:
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


def write_figures(config: Path, quality: Quality, measured_on: str) -> None:
    """Put the speeds' figures into a configuration: its lines `measured:` and `measured_on:`, nothing else."""
    text = config.read_text(encoding="utf-8")
    text = re.sub(r"^  measured_on: .*$", f'  measured_on: "{measured_on}"', text, flags=re.M)
    rows = {row.name.strip("`"): row for row in quality.rows}
    for speed in SPEEDS[1:]:
        row = rows[speed]
        assert row.settings is not None
        figures = {
            "settings_hash": f'"{row.settings.digest()}"',
            "num_inference_steps": row.steps,
            "speedup": f"{row.speedup:.2f}",
            "psnr_db": f"{row.psnr:.1f}",
            "psnr_db_worst_decile": f"{row.psnr_worst_decile:.1f}",
            "ssim": f"{row.ssim:.4f}",
            "ssim_worst_decile": f"{row.ssim_worst_decile:.4f}",
            "cached_steps": f"{row.cached_steps:.1f}",
        }
        flow = ", ".join(f"{key}: {value}" for key, value in figures.items())
        text, count = re.subn(
            rf"^(  {speed}:\n(?:    (?!measured:).*\n)*    measured: ).*$", rf"\g<1>{{{flow}}}", text, flags=re.M
        )
        assert count == 1, f"{config} has no line for the figures of {speed}"
    config.write_text(text, encoding="utf-8")
