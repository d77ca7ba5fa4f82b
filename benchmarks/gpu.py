"""What each acceleration gives a model of full size on a GPU: `python -m benchmarks.gpu`, within nine minutes.

Weights are random and made on the GPU, so nothing is downloaded. They take the time of trained ones, but their pictures
mean nothing, so which steps the cache reuses is fixed by a mask and not found by differences. `--tiny` tries all of it
on a CPU. Prints a page in Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests
import torch

from benchmarks import full_size
from benchmarks.card import attention_ms, flop_of_step, matrix_rate, synchronize
from benchmarks.machine import machine
from benchmarks.progress import say
from benchmarks.serving import server
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.config.variables import CONFIG_VARIABLE
from cache_dit_serving.pipeline import attention, load, quantize
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.pipeline.environment import quiet_libraries
from cache_dit_serving.pipeline.protocol import Unwatched
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest

CPU = "a CPU"
PROMPT = "A robot that paints a portrait of a cat, in oil, by the light of a window"
QUANT_TYPES = ("float8_per_row", "float8_weight_only")
"""The first that can be had here is taken."""
NOISE = 0.03
"""Share of native attention's time that another backend must save to get a row."""
PLAIN, CACHE, COMPILE, QUANTIZED, ATTENTION, ALL, SERVED = (
    "plain diffusers",
    "cache",
    "compile",
    "quantised",
    "attention",
    "all together",
    "all together, served",
)
ACCELERATIONS = (CACHE, COMPILE, QUANTIZED, ATTENTION)
BY_WORTH = (PLAIN, CACHE, ALL, SERVED, COMPILE, QUANTIZED, ATTENTION)
"""As they are run: where time runs out, the last ones are missing."""
IN_ORDER = (PLAIN, CACHE, COMPILE, QUANTIZED, ATTENTION, ALL, SERVED)

TEXT = """\
# {model} on {device}

Written by `python -m benchmarks.gpu --model {model}` ({date}): random weights at {size},
{side} x {side} px, {steps} steps, medians of {rounds} pictures after one. The cache has the step mask `{mask}`, which
computes {computed} of the {steps} steps, and Fn 1. Each row is plain diffusers with the accelerations it names, by the
server's settings, or with all of them. Quantised weights are measured compiled: compare them with the row `+ compile`.

{machine}

| | s a picture | times plain | ms a step | steps computed | peak memory, GiB | share of the limit |
|---|---|---|---|---|---|---|
{rows}

The limit: the computed steps take {tflop:.4g} TFLOP each, and {device} does {rate:.4g} TFLOP/s in a product
of two {dtype} matrices of {matrix} x {matrix}, measured beforehand. Fewer bits can go beyond it.
{notes}
"""


@dataclass(frozen=True)
class Facts:
    """What the plain row finds out for the others."""

    flop: float
    """Of one step, all its forward passes together."""
    rate: float
    """FLOP/s of a product of two large matrices."""
    backends: dict[str, float]
    """Attention backends that run here: milliseconds at the model's size."""
    quant_type: str | None

    @property
    def backend(self) -> str:
        """The fastest, or torch's own where no other is faster by more than noise."""
        fastest = min(self.backends, key=lambda name: self.backends[name])
        worth_it = self.backends[fastest] < (1 - NOISE) * self.backends[attention.NATIVE]
        return fastest if worth_it else attention.NATIVE


def main() -> None:
    """Run each row in a process of its own, and print the page."""
    arguments = _arguments()
    if arguments.row:
        print(json.dumps(ROWS[arguments.row](arguments)))
        return
    deadline = time.monotonic() + 60 * arguments.minutes
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        full_size.write(arguments.model, Path(folder) / arguments.model, tiny=arguments.tiny)
        facts = None
        for name in BY_WORTH:
            if arguments.rows and name not in arguments.rows and name != PLAIN:
                continue
            trees: dict[str, dict[str, str]] = _trees(facts, arguments) if facts else {PLAIN: {}}
            if name in trees:
                results[name] = run_row(name, trees[name], arguments, Path(folder), deadline - time.monotonic())
            else:
                results[name] = {"not_run": "nothing of the kind can be had here"}
            say(f"{name}: {results[name]}")
            if name == PLAIN:
                if "not_run" in results[PLAIN]:
                    sys.exit(results[PLAIN]["not_run"])
                facts = Facts(**results[PLAIN].pop("facts"))
    page = page_of(arguments, results, facts)
    print(page)
    if arguments.page:
        arguments.page.write_text(page, encoding="utf-8")


def _trees(facts: Facts, arguments: argparse.Namespace) -> dict[str, dict[str, str]]:
    """Settings of each row, by the keys of the environment; those that cannot be had here are left out."""
    cache = {
        "Fn_compute_blocks": 1,
        "residual_diff_threshold": 1.0,
        "steps_computation_mask": arguments.mask,
        "steps_computation_policy": "static",
    }
    trees: dict[str, dict[str, str]] = {
        PLAIN: {},
        CACHE: {"CACHE": json.dumps(cache)},
        COMPILE: {"COMPILE__DYNAMIC": "false"},
    }
    if facts.quant_type:
        trees[QUANTIZED] = {"QUANTIZE__QUANT_TYPE": facts.quant_type}
    if facts.backend != attention.NATIVE:
        trees[ATTENTION] = {"ATTENTION_BACKEND": facts.backend}
    trees = {name: tree for name, tree in trees.items() if name not in arguments.without}
    if QUANTIZED in trees:
        # Uncompiled, activations are quantised by kernels of their own, which cost more than the products save.
        trees[QUANTIZED] |= trees.get(COMPILE, {})
    together: dict[str, str] = {}
    for tree in trees.values():
        together |= tree
    return trees | {ALL: together, SERVED: together}


def run_row(
    name: str, tree: Mapping[str, str], arguments: argparse.Namespace, folder: Path, left_s: float
) -> dict[str, Any]:
    """What a row's process measured, or `not_run` with the reason."""
    if left_s <= 0:
        return {"not_run": "no time was left"}
    environ = environment_of(tree, arguments, folder)
    words = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], "--row", name]
    process = subprocess.Popen(
        words, env=os.environ | environ, cwd=BUNDLE_ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        printed, _ = process.communicate(timeout=left_s)
    except subprocess.TimeoutExpired:
        return {"not_run": "no time was left"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and a server that it started
        process.wait()
    if process.returncode:
        return {"not_run": "it failed; the reason is above the page"}
    row: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return row


def environment_of(tree: Mapping[str, str], arguments: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Variables of a row's process: the settings of the row, and those of all rows."""
    tree = {"MODEL__PATH": str(folder / arguments.model), "MODEL__WEIGHTS": "random", **tree}
    if arguments.tiny:
        tree["MODEL__DTYPE"] = "float32"
    if "COMPILE__DYNAMIC" in tree:
        tree["COMPILE__FOLDER"] = str(folder / "compiled")
    side = str(arguments.side)
    tree |= {"DEFAULTS__WIDTH": side, "DEFAULTS__HEIGHT": side, "SPEEDS__WARM_UP": "false"}
    tree["LIMITS__PROMPT_CACHE_BYTES"] = "0"  # plain diffusers encodes the prompt each time, too
    return {CONFIG_VARIABLE: "generic"} | {f"CACHE_DIT_SERVING__{key}": value for key, value in tree.items()}


def plain(arguments: argparse.Namespace) -> dict[str, Any]:
    """diffusers alone, as a script calls it; and what is to be known of the GPU."""
    quiet_libraries()
    device = load.choose_device(None)
    pipe: Any = load.load_pipeline(load_settings(os.environ), say).to(device)
    fields = _request(arguments) | {"prompt": PROMPT, "output_type": "np"}
    ends: list[float] = []

    def after_step(pipe: Any, step: int, timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
        if step in (0, arguments.steps - 1):
            synchronize(device)
            ends.append(time.perf_counter())
        return kept

    def picture() -> float:
        ends.clear()
        began = time.perf_counter()
        generator = torch.Generator("cpu").manual_seed(1)
        with torch.inference_mode():
            pipe(generator=generator, callback_on_step_end=after_step, **fields)
        synchronize(device)
        return time.perf_counter() - began

    flop, query = flop_of_step(pipe, fields)
    picture()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds, steps = [], []
    for _ in range(arguments.rounds):
        seconds.append(picture())
        steps.append((ends[-1] - ends[0]) / (arguments.steps - 1))
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    usable = [name for name in quantize.usable_types(device) if name in QUANT_TYPES]
    facts = {
        "flop": flop,
        "rate": matrix_rate(device, arguments.matrix),
        "backends": attention_ms(attention.usable_backends(device), query),
        "quant_type": min(usable, key=QUANT_TYPES.index, default=None),
    }
    return {
        "seconds": statistics.median(seconds),
        "denoise_s": statistics.median(steps) * arguments.steps,
        "computed": arguments.steps,
        "peak_bytes": peak,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else CPU,
        "facts": facts,
    }


def accelerated(arguments: argparse.Namespace) -> dict[str, Any]:
    """The server's pipeline with the settings of the environment, called in this process."""
    loaded = assemble(load_settings(os.environ), say)
    request = GenerateRequest.model_validate({"prompt": PROMPT, "seed": 1, **_request(arguments)})
    call = plan(resolve(request, loaded.model)).call
    records, seconds = [], []
    for _ in range(arguments.rounds + 1):
        began = time.perf_counter()
        records.append(loaded.runner.sample(call, Unwatched()).record)
        seconds.append(time.perf_counter() - began)
    on_gpu = loaded.runner.facts.device.startswith("cuda")
    return {
        "seconds": statistics.median(seconds[1:]),
        "denoise_s": statistics.median(record.denoise_s for record in records[1:]),
        "computed": records[-1].cache.computed_steps,
        "peak_bytes": max(record.peak_memory_bytes or 0 for record in records) if on_gpu else None,
    }


def served(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same behind `bentoml serve`, by a client on this machine."""
    seconds, answers = [], []
    with server() as running, requests.Session() as session:
        for seed in range(arguments.rounds + 1):
            asked = {"prompt": PROMPT, "seed": seed, **_request(arguments)}
            began = time.perf_counter()
            answer = session.post(f"{running.url}/generate", json=asked, timeout=300)
            seconds.append(time.perf_counter() - began)
            answer.raise_for_status()
            answers.append(answer.json())
    timings = [answer["timings"] for answer in answers[1:]]
    pipeline = [each["encode_prompt"] + each["denoise"] + each["decode"] for each in timings]
    rest = [all_of_it - of_pipeline for all_of_it, of_pipeline in zip(seconds[1:], pipeline, strict=True)]
    return {
        "seconds": statistics.median(seconds[1:]),
        "denoise_s": statistics.median(each["denoise"] for each in timings),
        "computed": answers[-1]["cache"]["computed_steps"],
        "peak_bytes": None,
        "beside_pipeline_s": statistics.median(rest),
        "file_s": statistics.median(each["encode_output"] for each in timings),
        "overhead": statistics.median(over / of for over, of in zip(rest, pipeline, strict=True)),
    }


ROWS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    PLAIN: plain,
    **dict.fromkeys((CACHE, COMPILE, QUANTIZED, ATTENTION, ALL), accelerated),
    SERVED: served,
}


def page_of(arguments: argparse.Namespace, results: Mapping[str, dict[str, Any]], facts: Facts | None) -> str:
    """The page, with a row for each result."""
    assert facts is not None
    first = results[PLAIN]
    rows = []
    for name in IN_ORDER:
        row = results.get(name)
        if row is None:
            continue
        quantised = facts.quant_type if COMPILE in arguments.without else f"{COMPILE}, {facts.quant_type}"
        label = {QUANTIZED: f"+ {quantised}", ATTENTION: f"+ attention: {facts.backend}"}.get(name, f"+ {name}")
        label = name if name in (PLAIN, ALL, SERVED) else label
        if "not_run" in row:
            rows.append(f"| {label} | not run: {row['not_run']} | | | | | |")
            continue
        share = row["computed"] * facts.flop / facts.rate / row["denoise_s"]
        peak = f"{row['peak_bytes'] / 2**30:.1f}" if row["peak_bytes"] else ""
        times, step_ms = first["seconds"] / row["seconds"], 1000 * row["denoise_s"] / arguments.steps
        rows.append(
            f"| {label} | {row['seconds']:.3f} | {times:.2f} | {step_ms:.1f} | {row['computed']} | {peak} "
            f"| {100 * share:.0f} % |"
        )
    cached = results.get(CACHE, {}).get("computed", "?")
    return TEXT.format(
        model=arguments.model,
        size="a tiny size" if arguments.tiny else "the model's published size",
        device=first["device"],
        date=datetime.now(UTC).date().isoformat(),
        **{name: getattr(arguments, name) for name in ("side", "steps", "rounds", "mask", "matrix")},
        computed=cached,
        machine=machine(),
        rows="\n".join(rows),
        tflop=facts.flop / 1e12,
        rate=facts.rate / 1e12,
        dtype="float32" if first["device"] == CPU else "bfloat16",
        notes="\n".join(_notes(arguments, results, facts)),
    )


def _notes(arguments: argparse.Namespace, results: Mapping[str, dict[str, Any]], facts: Facts) -> list[str]:
    notes = []
    backends = ", ".join(f"{name} {ms:.2f} ms" for name, ms in facts.backends.items())
    notes.append(f"Attention at this size: {backends}.")
    row = results.get(SERVED, {})
    if "overhead" in row:
        notes.append(
            f"Serving adds {1000 * row['beside_pipeline_s']:.1f} ms to the pipeline's time in the same request, "
            f"{100 * row['overhead']:.1f} %; {1000 * row['file_s']:.1f} ms of them make the PNG file."
        )
    if arguments.tiny:
        notes.append("**A trial of the script (--tiny): the figures say nothing about the model.**")
    return notes


def _request(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of a picture, but for its prompt."""
    usual = full_size.request_of(arguments.model)
    asked = {"width": arguments.side, "height": arguments.side, "num_inference_steps": arguments.steps}
    return {**usual, **asked}


def _arguments() -> argparse.Namespace:
    """What was asked for, with the model's steps, and small for a trial."""
    arguments = _parser().parse_args()
    arguments.steps = arguments.steps or full_size.request_of(arguments.model)["num_inference_steps"]
    arguments.matrix = 8192
    if arguments.tiny:
        arguments.side, arguments.steps, arguments.matrix = 128, 8, 512
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--model", choices=tuple(full_size.MODELS), default="flux.1-dev", help="default: %(default)s")
    parser.add_argument("--side", type=int, default=1024, help="width and height, px (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's, 28 or 50)")
    parser.add_argument("--rounds", type=int, default=2, help="pictures whose median is taken (default: %(default)s)")
    parser.add_argument(
        "--mask",
        choices=("slow", "medium", "fast", "ultra"),
        default="ultra",
        help="steps that the cache computes, by cache-dit's policy (default: %(default)s, as in its published runs)",
    )
    parser.add_argument("--rows", nargs="+", choices=IN_ORDER, help="only these rows, and the plain one")
    parser.add_argument(
        "--without", nargs="+", choices=ACCELERATIONS, default=(), help="accelerations to leave out of all rows"
    )
    parser.add_argument("--minutes", type=float, default=9, help="rows that do not fit are left out (default: 9)")
    parser.add_argument("--page", type=Path, help="file to write the page to, too")
    parser.add_argument("--tiny", action="store_true", help="try the script with a tiny model, also on a CPU")
    parser.add_argument("--row", choices=IN_ORDER, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
