"""A model of FLUX.1's size on GPUs, on one and spread over several: `python -m benchmarks.gpu --ranks 1 2 4 8`.

Weights are random: they take the time of trained ones, but their pictures mean nothing, and how many steps the cache
reuses is not that of a trained model. `--model` takes a folder with trained ones. Prints a table in Markdown.
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

from benchmarks.run import machine
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.config.reading import CONFIG_VARIABLE, load_settings
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.pipeline.environment import quiet_libraries
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from cache_dit_serving.pipeline.protocol import Loaded, Unwatched
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.runners.ranked import RankedRunner
from cache_dit_serving.schemas.request import GenerateRequest

HEAD = """\
{machine}

{steps} steps, {side} x {side}, medians of {rounds} pictures after one.

| ranks | uncached, s | ms a step | cached, s | cached steps | uncached, times the first row | peak memory, GiB |
|---|---|---|---|---|---|---|"""


def build(folder: Path, layers: tuple[int, int], heads: int) -> None:
    """A FLUX pipeline with random weights and the embedded model's text encoders, which take next to no time.

    Args:
        layers: double and single blocks; FLUX.1 has 19 and 38.
        heads: of 128 channels; FLUX.1 has 24.
    """
    import torch
    from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel

    pipe = FluxPipeline.from_pretrained(EMBEDDED_FOLDER, torch_dtype=torch.bfloat16)
    text = pipe.transformer.config
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        pipe.transformer = FluxTransformer2DModel(
            num_layers=layers[0],
            num_single_layers=layers[1],
            num_attention_heads=heads,
            joint_attention_dim=text.joint_attention_dim,
            pooled_projection_dim=text.pooled_projection_dim,
        )
        pipe.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        )
    torch.set_default_dtype(torch.float32)
    pipe.save_pretrained(folder)


def measure(arguments: argparse.Namespace, ranks: int) -> dict[str, Any]:
    """One row, in this process."""
    import torch

    quiet_libraries()
    side = str(arguments.side)
    tree = {"MODEL__PATH": arguments.model, "CACHE": "{}", "DEFAULTS__WIDTH": side, "DEFAULTS__HEIGHT": side}
    if not torch.cuda.is_available():
        tree["MODEL__DTYPE"] = "float32"  # to try this script; bfloat16 takes minutes on a CPU
    if ranks > 1:
        tree[f"PARALLELISM__{arguments.parallel.upper()}_SIZE"] = str(ranks)
    environ = {f"CACHE_DIT_SERVING__{key}": value for key, value in tree.items()}
    settings = load_settings({CONFIG_VARIABLE: "generic"} | environ)

    def silent(stage: str) -> None:
        print(stage, file=sys.stderr)

    loaded = RankedRunner.start(settings, silent) if ranks > 1 else assemble(settings, silent)
    uncached = [picture(loaded, arguments, {"speed": "lossless"}) for _ in range(arguments.rounds + 1)][1:]
    cached = [picture(loaded, arguments, {}) for _ in range(arguments.rounds + 1)][1:]
    loaded.runner.close()
    return {
        "uncached_s": statistics.median(record.seconds for record in uncached),
        "cached_s": statistics.median(record.seconds for record in cached),
        "cached_steps": len(cached[-1].cache.cached_steps or ()),
        "peak_bytes": max(record.peak_memory_bytes or 0 for record in uncached + cached),
    }


def picture(loaded: Loaded, arguments: argparse.Namespace, fields: dict[str, Any]) -> Any:
    """What the record of one picture says."""
    asked = {"prompt": "a robot", "seed": 1, "width": arguments.side, "height": arguments.side}
    asked |= {"num_inference_steps": arguments.steps}
    call = plan(GenerateRequest.model_validate(asked | fields), loaded.model)
    return loaded.runner.sample(call, 0, Unwatched()).record


def main() -> None:
    """Measure each number of ranks in a process of its own, and print the table."""
    arguments = _parser().parse_args()
    if arguments.row:
        print(json.dumps(measure(arguments, arguments.ranks[0])))
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.model is None:
            arguments.model = folder
            build(Path(folder), (arguments.layers[0], arguments.layers[1]), arguments.heads)
        print(HEAD.format(machine=machine(), **vars(arguments)))
        first = None
        for ranks in arguments.ranks:
            words = [sys.executable, "-m", "benchmarks.gpu", "--row", "--model", arguments.model]
            words += ["--ranks", str(ranks), "--parallel", arguments.parallel]
            for name in ("side", "steps", "rounds"):
                words += [f"--{name}", str(getattr(arguments, name))]
            run = subprocess.run(words, env=os.environ, cwd=BUNDLE_ROOT, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(run.stdout.splitlines()[-1])
            seconds = row["uncached_s"]
            first = first or seconds
            cells = f"{seconds:.2f} | {1000 * seconds / arguments.steps:.1f} | {row['cached_s']:.2f}"
            cells += f" | {row['cached_steps']} | {first / seconds:.2f} | {row['peak_bytes'] / 2**30:.1f}"
            print(f"| {ranks} | {cells} |", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1], help="GPUs that share a picture: a row for each")
    parser.add_argument("--parallel", choices=("ulysses", "ring", "tp"), default="ulysses", help="how they share it")
    parser.add_argument("--model", help="a folder with a model of trained weights; left out: random ones")
    parser.add_argument("--side", type=int, default=1024, help="width and height, px (default 1024)")
    parser.add_argument("--steps", type=int, default=28, help="default 28")
    parser.add_argument("--rounds", type=int, default=5, help="pictures whose median is taken (default 5)")
    parser.add_argument("--layers", type=int, nargs=2, default=(19, 38), help="of random weights; FLUX.1's: 19 38")
    parser.add_argument("--heads", type=int, default=24, help="of random weights; FLUX.1's: 24")
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
