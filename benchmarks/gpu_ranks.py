"""A model of full size spread over GPUs: `python -m benchmarks.gpu_ranks --ranks 1 2 4 8`.

Weights are random: they take the time of trained ones, but their pictures mean nothing, and how many steps the cache
reuses is not that of a trained model. `--folder` takes a model with trained ones. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import full_size
from benchmarks.machine import machine
from benchmarks.progress import say
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.config.variables import CONFIG_VARIABLE
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.pipeline.environment import quiet_libraries
from cache_dit_serving.pipeline.protocol import Loaded, Unwatched
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.ranks.ranked import RankedRunner
from cache_dit_serving.schemas.request import GenerateRequest

HEAD = """\
{machine}

{steps} steps, {side} x {side}, medians of {rounds} pictures after one.

| ranks | uncached, s | ms a step | cached, s | cached steps | uncached, times the first row | peak memory, GiB |
|---|---|---|---|---|---|---|"""


def measure(arguments: argparse.Namespace, folder: str, ranks: int) -> dict[str, Any]:
    """One row, in this process.

    Args:
        folder: of the model.
    """
    import torch

    quiet_libraries()
    side = str(arguments.side)
    tree = {
        "MODEL__PATH": folder,
        "CACHE": '{"Fn_compute_blocks": 1}',
        "DEFAULTS__WIDTH": side,
        "DEFAULTS__HEIGHT": side,
    }
    if arguments.folder is None:
        tree["MODEL__WEIGHTS"] = "random"
    if not torch.cuda.is_available():
        tree["MODEL__DTYPE"] = "float32"  # to try this script; bfloat16 takes minutes on a CPU
    if ranks > 1:
        tree[f"PARALLELISM__{arguments.parallel.upper()}_SIZE"] = str(ranks)
    environ = {f"CACHE_DIT_SERVING__{key}": value for key, value in tree.items()}
    settings = load_settings({CONFIG_VARIABLE: "generic"} | environ)
    loaded = RankedRunner.start(settings, say) if ranks > 1 else assemble(settings, say)
    uncached = [picture(loaded, arguments, {"speed": "lossless"}) for _ in range(arguments.rounds + 1)][1:]
    cached = [picture(loaded, arguments, {}) for _ in range(arguments.rounds + 1)][1:]
    loaded.runner.close()
    return {
        "uncached_s": statistics.median(record.seconds for record in uncached),
        "cached_s": statistics.median(record.seconds for record in cached),
        "cached_steps": cached[-1].cache.cached_steps,
        "peak_bytes": max(record.peak_memory_bytes or 0 for record in uncached + cached),
    }


def picture(loaded: Loaded, arguments: argparse.Namespace, fields: dict[str, Any]) -> Any:
    """What the record of one picture says."""
    asked = {"prompt": "a robot", "seed": 1, "width": arguments.side, "height": arguments.side}
    asked |= {"num_inference_steps": arguments.steps}
    call = plan(resolve(GenerateRequest.model_validate(asked | fields), loaded.model)).call
    return loaded.runner.sample(call, Unwatched()).record


def main() -> None:
    """Measure each number of ranks in a process of its own, and print the table."""
    arguments = _parser().parse_args()
    if arguments.row:
        print(json.dumps(measure(arguments, arguments.row, arguments.ranks[0])))
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.folder is None:
            full_size.write(arguments.model, Path(folder), tiny=arguments.tiny)
        print(HEAD.format(machine=machine(), **vars(arguments)))
        first = None
        for ranks in arguments.ranks:
            words = [sys.executable, "-m", "benchmarks.gpu_ranks", *sys.argv[1:]]
            words += ["--ranks", str(ranks), "--row", arguments.folder or folder]
            run = subprocess.run(words, env=os.environ, cwd=BUNDLE_ROOT, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(run.stdout.splitlines()[-1])
            seconds = row["uncached_s"]
            first = first or seconds
            cells = f"{seconds:.2f} | {1000 * seconds / arguments.steps:.1f} | {row['cached_s']:.2f}"
            cells += f" | {row['cached_steps']} | {first / seconds:.2f} | {row['peak_bytes'] / 2**30:.1f}"
            print(f"| {ranks} | {cells} |", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_ranks", description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1], help="GPUs that share a picture: a row for each")
    parser.add_argument("--parallel", choices=("ulysses", "ring", "tp"), default="ulysses", help="how they share it")
    parser.add_argument("--model", choices=tuple(full_size.MODELS), default="flux.1-dev", help="default: %(default)s")
    parser.add_argument("--folder", help="a model of trained weights instead")
    parser.add_argument("--tiny", action="store_true", help="try the script with a tiny model, also on a CPU")
    parser.add_argument("--side", type=int, default=1024, help="width and height, px (default 1024)")
    parser.add_argument("--steps", type=int, default=28, help="default 28")
    parser.add_argument("--rounds", type=int, default=5, help="pictures whose median is taken (default 5)")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
