"""Metrics beyond BentoML's own. The page docs/metrics.md explains each."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import get_args

import psutil
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from cache_dit_serving import __version__
from cache_dit_serving.caching.settings import ReasonCode
from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.config.residency import SleepLevel
from cache_dit_serving.pipeline.protocol import SampleRecord
from cache_dit_serving.schemas.jobs import JobState

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Variable that BentoML's supervisor gives its workers: a folder with the metrics of each."""

LIBRARIES = ("bentoml", "cache_dit", "diffusers", "torch", "transformers")
BUILD_INFO = Gauge(
    "cache_dit_serving_build_info",
    "Always 1; the labels are the versions.",
    ["version", "python", *LIBRARIES],
    multiprocess_mode="livemax",
)
WORKERS = Gauge(
    "cache_dit_serving_workers",
    "Workers by state: loading, ready, failed (also while the pipeline stands still), draining.",
    ["state"],
    multiprocess_mode="livesum",
)
MAX_QUEUE = Gauge(
    "cache_dit_serving_max_queue",
    "Generations that may wait: limits.max_queue of each worker, added up.",
    multiprocess_mode="livesum",
)
JOBS = Gauge(
    "cache_dit_serving_jobs",
    "Jobs of the database by state. Servers that share one report the same.",
    ["state"],
    multiprocess_mode="livemostrecent",
)
HTTP_RESPONSES = Counter(
    "cache_dit_serving_http_responses", "HTTP answers by route and status code.", ["route", "status"]
)
REQUEST_SECONDS = Histogram(
    "cache_dit_serving_request_seconds",
    "Seconds from a request to the last byte of its answer, by route.",
    ["route"],
    buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800),
)
OUT_OF_MEMORY = Counter(
    "cache_dit_serving_out_of_memory", "Images that needed more device memory than there is.", ["model"]
)
PIPELINE_BUSY_SECONDS = Counter(
    "cache_dit_serving_pipeline_busy_seconds",
    "Seconds that the pipeline's thread spent on generations; its rate is the pipeline's utilisation.",
    ["model"],
)
GENERATIONS = Counter(
    "cache_dit_serving_generations",
    "Generations that left the pipeline, by how they ended.",
    ["outcome", "speed", "model"],
)
QUEUE_WAITING = Gauge(
    "cache_dit_serving_queue_waiting", "Generations that wait for the pipeline.", multiprocess_mode="livesum"
)
IMAGES = Counter(
    "cache_dit_serving_images",
    "Images drawn, by whether the cache reused anything in them and by the code of the reason where it did not.",
    ["engaged", "reason", "speed", "model"],
)
STEPS = Counter(
    "cache_dit_serving_steps", "Denoising steps, computed or reused from the cache.", ["kind", "speed", "model"]
)
RESIDUAL_DIFF = Histogram(
    "cache_dit_serving_residual_diff",
    "Relative L1 residual differences that the cache decided on; a ratio without unit.",
    ["speed", "model"],
    buckets=(0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.16, 0.2, 0.24, 0.3, 0.4, 0.5, 0.7, 1.0),
)
NAN_DIFFS = Counter(
    "cache_dit_serving_nan_diffs",
    "Residual differences that are not numbers: the model's values are broken. An alarm.",
    ["model"],
)
PAIRING_MISMATCHES = Counter(
    "cache_dit_serving_pairing_mismatches",
    "Images drawn again because guidance made other forward passes than planned.",
    ["model"],
)
CACHE_TRANSITIONS = Counter(
    "cache_dit_serving_cache_transitions",
    "What the cache needed between two images: none, override (other settings), exchange (another type, on or off).",
    ["transition"],
)
PROMPTS = Counter(
    "cache_dit_serving_prompts",
    "Prompts to encode, by whether their embeddings were kept from before: hit or miss.",
    ["outcome"],
)
COMPILED_GRAPHS = Counter(
    "cache_dit_serving_compiled_graphs",
    "Graphs that torch.compile compiled for requests: what the start had not compiled, such as a set of LoRAs.",
)
PEAK_MEMORY_BYTES = Histogram(
    "cache_dit_serving_peak_memory_bytes",
    "The most that was allocated on the device while an image was drawn; on a CPU, that the process had resident.",
    ["model"],
    buckets=tuple(
        gigabytes * 2**30 for gigabytes in (0.5, 1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192)
    ),
)
STAGE_SECONDS = Histogram(
    "cache_dit_serving_stage_seconds",
    "Seconds by stage: queue (of a generation); encode_prompt, denoise, decode, encode_output (of an image).",
    ["stage", "speed", "model"],
    buckets=(0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500),
)
WARNINGS = Counter(
    "cache_dit_serving_warnings",
    "Request fields that had no effect, as reported in answers.",
    ["code", "param"],
)
DEADLINES = Counter(
    "cache_dit_serving_deadlines", "Requests with deadline_s: met, missed, or refused at admission.", ["outcome"]
)
OUTPUTS_DELETED = Counter(
    "cache_dit_serving_outputs_deleted",
    "Jobs with their outputs, and outputs of no job, that were too old (age) or too many (bytes).",
    ["reason"],
)
STALLS = Counter(
    "cache_dit_serving_stalls",
    "Times that the pipeline stood still for longer than limits.max_step_s. An alarm: start the process anew.",
)
WEBHOOKS = Counter(
    "cache_dit_serving_webhooks",
    "Attempts to deliver a webhook: delivered, failed (to be tried again), given_up.",
    ["outcome"],
)
UNSHARED_LIMITS = Counter(
    "cache_dit_serving_unshared_limits",
    "Requests that were held to a limit of one server alone, since jobs.database did not answer.",
    ["limit"],
)
SAFETY_CHECKS = Counter(
    "cache_dit_serving_safety_checks",
    "Verdicts of the operator's safety check on prompts and outputs: allow, refuse, blank, error.",
    ["subject", "verdict"],
)
SAFETY_SECONDS = Histogram(
    "cache_dit_serving_safety_seconds",
    "Seconds that the operator's safety check took, by subject: prompt or output.",
    ["subject"],
    buckets=(0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
SHADOW_RUNS = Counter(
    "cache_dit_serving_shadow_runs",
    "Shadow runs: drawn, stopped for a request, failed; and those given up before: overtaken by newer ones, too_large.",
    ["outcome", "model"],
)
SHADOW_SECONDS = Counter(
    "cache_dit_serving_shadow_seconds",
    "Seconds that the pipeline's thread spent on shadow runs, stopped ones included.",
    ["model"],
)
SHADOW_SPEEDUP = Histogram(
    "cache_dit_serving_shadow_speedup",
    "Seconds without the cache over seconds with it, of the outputs that shadow runs compared.",
    ["speed", "model"],
    buckets=(0.9, 1, 1.1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 7),
)
SHADOW_DISTANCES = {
    "psnr_db": Histogram(
        "cache_dit_serving_shadow_psnr_db",
        "PSNR of cached outputs against the same without the cache, dB; 100: equal.",
        ["speed", "model"],
        buckets=(15, 18, 20, 22, 24, 26, 28, 30, 32, 35, 38, 42, 46, 50, 60, 99),
    ),
    "ssim": Histogram(
        "cache_dit_serving_shadow_ssim",
        "SSIM of cached outputs against the same without the cache.",
        ["speed", "model"],
        buckets=(0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.875, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999),
    ),
    "flip": Histogram(
        "cache_dit_serving_shadow_flip",
        "FLIP of cached outputs against the same without the cache; 0: equal.",
        ["speed", "model"],
        buckets=(0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5),
    ),
    "snr_db": Histogram(
        "cache_dit_serving_shadow_snr_db",
        "Signal-to-noise ratio of cached sounds against the same without the cache, dB; 100: equal.",
        ["speed", "model"],
        buckets=(0, 3, 6, 10, 15, 20, 25, 30, 40, 50, 60, 99),
    ),
}
"""Distances that shadow runs measure, by measure."""
SPEED_LOWERED = Gauge(
    "cache_dit_serving_speed_lowered",
    "1 while live traffic misses a floor of the speed, and requests for it get a less approximate one. An alarm.",
    ["speed", "model"],
    multiprocess_mode="livemax",
)
SHADOW_WAITING = Gauge(
    "cache_dit_serving_shadow_waiting",
    "Outputs that wait for their shadow run.",
    ["model"],
    multiprocess_mode="livesum",
)

ASLEEP = Gauge(
    "cache_dit_serving_asleep",
    "Ready workers whose model is asleep, by the place of its weights: host, disk.",
    ["level", "model"],
    multiprocess_mode="livesum",
)
ASLEEP_FREED_BYTES = Gauge(
    "cache_dit_serving_asleep_freed_bytes",
    "Bytes that models which are asleep gave back; of the device, or on a CPU of the weights.",
    ["model"],
    multiprocess_mode="livesum",
)
SLEEPS = Counter(
    "cache_dit_serving_sleeps",
    "Times that the model went to sleep: asleep, or undone by a request that came meanwhile.",
    ["level", "outcome", "model"],
)
WAKE_SECONDS = Histogram(
    "cache_dit_serving_wake_seconds",
    "Seconds that waking took, by the place of the weights: host, disk.",
    ["level", "model"],
    buckets=(0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
)
WAKE_FAILURES = Counter(
    "cache_dit_serving_wake_failures",
    "Times that the weights did not fit into the device's memory on waking. An alarm: another process holds it.",
    ["model"],
)
SWITCHES = Counter(
    "cache_dit_serving_switches",
    "Times that a model of several was brought into memory for its requests.",
    ["model"],
)
SWITCH_SECONDS = Counter(
    "cache_dit_serving_switch_seconds",
    "Seconds that the pipeline's thread spent on bringing models into memory, others giving way included.",
    ["model"],
)


def of_all_workers() -> CollectorRegistry:
    """Return the metrics of all workers of this server; of this process alone where there is no folder of theirs."""
    if not os.environ.get(METRICS_FOLDER):
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return registry


WORKER_STATES = ("loading", "ready", "failed", "draining")
SPEEDS = (*get_args(Speed), "custom")
SLEEP_LEVELS = get_args(SleepLevel)
OUTCOMES = (
    *("succeeded", "cancelled", "failed", "out_of_memory"),
    *("cache_not_engaged", "invalid_value", "internal_error", "runner_lost"),
)
REASONS = get_args(ReasonCode)
STAGES = ("queue", "encode_prompt", "denoise", "decode", "encode_output")


def start_series(versions: Mapping[str, str]) -> None:
    """Have a series for all values of labels that are known before: a rate needs a value before the first event.

    Those of a model begin with it: :func:`start_series_of`.

    Args:
        versions: of the libraries, by the names of their distributions.
    """
    named = {name.replace("-", "_"): version for name, version in versions.items()}
    BUILD_INFO.labels(__version__, platform.python_version(), *(named[name] for name in LIBRARIES)).set(1)
    _start(
        {
            WORKERS: [(state,) for state in WORKER_STATES],
            JOBS: [(state,) for state in JobState],
            CACHE_TRANSITIONS: [("none",), ("override",), ("exchange",)],
            PROMPTS: [("hit",), ("miss",)],
            DEADLINES: [("met",), ("missed",), ("refused",)],
            OUTPUTS_DELETED: [("age",), ("bytes",)],
            SAFETY_CHECKS: product(("prompt", "output"), ("allow", "refuse", "blank", "error")),
            UNSHARED_LIMITS: [("requests_per_minute",), ("max_live",)],
            WEBHOOKS: [("delivered",), ("failed",), ("given_up",)],
        }
    )


def start_series_of(model: str) -> None:
    """Have the series of a model whose other labels are known before; as :func:`start_series`.

    Args:
        model: its name in requests; empty for the only one of a server.
    """
    own = [(model,)]
    _start(
        {
            GENERATIONS: product(OUTCOMES, SPEEDS, [model]),
            IMAGES: [*product(["true"], [""], SPEEDS, [model]), *product(["false"], REASONS, SPEEDS, [model])],
            STEPS: product(("computed", "cached"), SPEEDS, [model]),
            RESIDUAL_DIFF: product(SPEEDS, [model]),
            STAGE_SECONDS: product(STAGES, SPEEDS, [model]),
            SHADOW_RUNS: product(("drawn", "stopped", "failed", "overtaken", "too_large"), [model]),
            ASLEEP: product(SLEEP_LEVELS, [model]),
            SLEEPS: product(SLEEP_LEVELS, ("asleep", "undone"), [model]),
            WAKE_SECONDS: product(SLEEP_LEVELS, [model]),
        }
        | dict.fromkeys((OUT_OF_MEMORY, PIPELINE_BUSY_SECONDS, NAN_DIFFS, PAIRING_MISMATCHES), own)
        | dict.fromkeys((PEAK_MEMORY_BYTES, ASLEEP_FREED_BYTES, WAKE_FAILURES, SWITCHES, SWITCH_SECONDS), own)
        | dict.fromkeys((SHADOW_SECONDS, SHADOW_WAITING), own)
    )


def _start(series: Mapping[Counter | Gauge | Histogram, Iterable[tuple[str, ...]]]) -> None:
    for metric, values in series.items():
        for each in values:
            metric.labels(*each)


def tell_state(state: str) -> None:
    """Say which state this worker is in."""
    for each in WORKER_STATES:
        WORKERS.labels(each).set(each == state)


def tell_sleep(model: str, level: SleepLevel | None, freed_bytes: int) -> None:
    """Say at which level a model of this worker is asleep, and what it gave back; None: it is awake."""
    for each in SLEEP_LEVELS:
        ASLEEP.labels(each, model).set(each == level)
    ASLEEP_FREED_BYTES.labels(model).set(freed_bytes)


def forget_ended_workers() -> None:
    """Take the live gauges of workers that are no more out of `/metrics`; their counters stay, since those only grow.

    prometheus_client keeps the values of each process in a file; it cannot know by itself that a process was killed.
    """
    folder = os.environ.get(METRICS_FOLDER)
    supervisor = psutil.Process().parent()
    if not folder or supervisor is None:
        return
    alive = {supervisor.pid, *(worker.pid for worker in supervisor.children())}
    pids = {file.stem.rpartition("_")[2] for file in Path(folder).glob("gauge_live*.db")}
    for pid in pids:
        if pid.isdecimal() and int(pid) not in alive:
            mark_process_dead(int(pid))


def observe_image(record: SampleRecord, model: str) -> None:
    """Count what one image of a model took and what the cache did to it."""
    report = record.cache
    speed = report.speed
    IMAGES.labels(str(report.engaged).lower(), report.reason_code or "", speed, model).inc()
    STEPS.labels("computed", speed, model).inc(report.computed_steps)
    STEPS.labels("cached", speed, model).inc(report.cached_steps)
    for diff in record.diffs:
        if math.isfinite(diff):
            RESIDUAL_DIFF.labels(speed, model).observe(diff)
    CACHE_TRANSITIONS.labels(record.transition).inc()
    if record.peak_memory_bytes is not None:
        PEAK_MEMORY_BYTES.labels(model).observe(record.peak_memory_bytes)
    PROMPTS.labels("hit").inc(record.prompt_hits)
    PROMPTS.labels("miss").inc(record.prompt_misses)
    COMPILED_GRAPHS.inc(record.compiled_graphs)
    NAN_DIFFS.labels(model).inc(report.nan_diffs)
    PAIRING_MISMATCHES.labels(model).inc(report.redrawn)
    for stage in ("encode_prompt", "denoise", "decode"):
        STAGE_SECONDS.labels(stage, speed, model).observe(getattr(record, f"{stage}_s"))
