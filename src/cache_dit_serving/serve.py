"""The launcher for people coming from cache_dit.serve: `python -m cache_dit_serving.serve --model-path ... --cache`.

Its flags set the settings tree by its environment variables, then `bentoml serve` takes over this process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from cache_dit_serving.caching.step_masks import POLICIES
from cache_dit_serving.config.reading import (
    BUNDLE_ROOT,
    CONFIG_VARIABLE,
    GENERIC_CONFIG,
    MODEL_PATH_VARIABLE,
    OVERRIDE_PREFIX,
    config_names,
    load_settings,
)
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.supervisor import check_port, fail

LATER = (
    *("--parallel-type", "--parallel", "--ulysses-anything", "--uaa", "--ulysses-async", "--uaqkv"),
    *("--ulysses-async-qkv-proj", "--ulysses-float8", "--ufp8", "--parallel-vae", "--parallel-text-encoder"),
    *("--parallel-text", "--disable-compute-comm-overlap", "--dcco", "--quantize", "-q", "--quantize-type"),
    *("--quant-type", "--pipeline-quant-config-path", "--lora-path", "--lora-name", "--fuse-lora"),
    *("--disable-fuse-lora", "--enable-cpu-offload", "--device-map", "--compile", "--compile-repeated-blocks"),
    *("--max-autotune", "--track-memory", "--profile", "--profile-name", "--profile-dir", "--profile-activities"),
    *("--profile-with-stack", "--profile-record-shapes", "--generator-device", "--gen-device"),
)
"""Flags of cache_dit.serve that this version does not have yet."""
DEFAULT_MASK = "medium"
# Flags that cache_dit.serve parsed and never read; each takes a value.
IDLE = ("repeat", "height", "width", "prompt", "negative-prompt", "image-path", "warmup")


class NotYet(argparse.Action):
    """Refuses a flag that comes with a later version."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.error(f"{self.option_strings[0]} is not supported yet; docs/migration.md lists what is")


DESCRIPTION = """\
Serve a diffusion transformer with BentoML, accelerated by cache-dit.

  examples:
    python -m cache_dit_serving.serve --config embedded --port 3000     the small model in the bundle, no GPU needed
    python -m cache_dit_serving.serve --model-path Qwen/Qwen-Image --cache
    python -m cache_dit_serving.serve --model-path Qwen/Qwen-Image --cache --rdt 0.15 --Fn 8
    python -m cache_dit_serving.serve --config qwen-image                settings for the model from configs/
"""


def parser() -> argparse.ArgumentParser:
    """The flags, each naming the setting it fills."""
    result = argparse.ArgumentParser(
        prog="cache-dit-serving serve",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # `--warmup` would set the warm-up interval, as the beginning of its name.
        allow_abbrev=False,
    )
    model = result.add_argument_group("model")
    model.add_argument("--model-path", metavar="PATH_OR_ID", help="a folder saved by save_pretrained, or a hub id")
    model.add_argument(
        "--config", metavar="NAME_OR_PATH", help=f"settings to start from: {', '.join(config_names())}, or a YAML file"
    )
    model.add_argument("--device", help="cuda, cuda:1, cpu ...; left out: the accelerator if there is one")
    model.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="of the weights (default: bfloat16, or the config's)",
    )
    model.add_argument("--attn", metavar="BACKEND", help="attention backend: native, flash, _native_cudnn, sage ...")

    cache = result.add_argument_group("cache", "DBCache settings; without --cache there is no cache, or the config's")
    cache.add_argument("--cache", action="store_true", help="enable DBCache")
    cache.add_argument("--Fn", "--Fn-compute-blocks", type=int, help="first n blocks, always computed (default: 8)")
    cache.add_argument("--Bn", "--Bn-compute-blocks", type=int, help="last n blocks, always computed (default: 0)")
    cache.add_argument(
        "--rdt", "--residual-diff-threshold", type=float, help="residual difference threshold (default: 0.08)"
    )
    cache.add_argument("--max-warmup-steps", "--w", "--ws", type=int, help="steps always computed first (default: 8)")
    cache.add_argument("--warmup-interval", "--wi", type=int, help="interval within the warm-up (default: 1)")
    cache.add_argument("--max-cached-steps", "--mc", type=int, help="-1: no limit (default)")
    cache.add_argument("--max-continuous-cached-steps", "--mcc", type=int, help="in a row; -1: no limit (default)")
    cache.add_argument("--taylorseer", action="store_true", default=None, help="enable the TaylorSeer calibrator")
    cache.add_argument("--taylorseer-order", "-order", type=int, help="order of TaylorSeer (default: 1)")
    cache.add_argument(
        "--mask-policy",
        "--scm",
        choices=POLICIES,
        help="step mask: which steps compute (slow: least reuse)",
    )
    cache.add_argument("--steps-mask", action="store_true", help=f"step mask; without --mask-policy: {DEFAULT_MASK}")

    defaults = result.add_argument_group("requests")
    defaults.add_argument(
        "--num-inference-steps", "--steps", type=int, help="denoising steps of a request that names none"
    )

    server = result.add_argument_group("server")
    server.add_argument("--host", default="0.0.0.0", help="default: %(default)s")
    server.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    server.add_argument("--workers", type=int, help="worker processes, each with the model (default: 1)")

    old = result.add_argument_group(
        "of old command lines",
        f"accepted, without effect: {' '.join(f'--{name}' for name in (*IDLE, 'perf'))}",
    )
    for name in IDLE:
        old.add_argument(f"--{name}", metavar="VALUE", help=argparse.SUPPRESS)
    old.add_argument("--perf", action="store_true", default=None, help=argparse.SUPPRESS)
    for option in LATER:
        old.add_argument(option, action=NotYet, nargs="*", help=argparse.SUPPRESS)
    return result


def idle_flags(flags: argparse.Namespace) -> list[str]:
    """The flags given that have no effect."""
    return [f"--{name}" for name in (*IDLE, "perf") if getattr(flags, name.replace("-", "_")) is not None]


# Flag -> leaf of the settings tree.
LEAVES = {
    "model_path": "model.path",
    "device": "model.device",
    "dtype": "model.dtype",
    "attn": "attention_backend",
    "Fn": "cache.Fn_compute_blocks",
    "Bn": "cache.Bn_compute_blocks",
    "rdt": "cache.residual_diff_threshold",
    "max_warmup_steps": "cache.max_warmup_steps",
    "warmup_interval": "cache.warmup_interval",
    "max_cached_steps": "cache.max_cached_steps",
    "max_continuous_cached_steps": "cache.max_continuous_cached_steps",
    "taylorseer": "cache.enable_taylorseer",
    "taylorseer_order": "cache.taylorseer_order",
    "mask_policy": "cache.steps_computation_mask",
    "num_inference_steps": "defaults.num_inference_steps",
    "workers": "server.workers",
}


def environment_of(flags: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment that makes the settings tree what the flags say, on top of `environ`.

    Raises:
        ConfigError: there is no model to serve, a cache flag without a cache to set, or settings that are not valid.
    """
    config = flags.config or (GENERIC_CONFIG if flags.model_path else environ.get(CONFIG_VARIABLE))
    if config is None and MODEL_PATH_VARIABLE in environ:
        config = GENERIC_CONFIG
    if config is None:
        raise ConfigError(
            "say what to serve: --model-path with a folder or hub id, "
            f"or --config with one of {', '.join(config_names())}"
        )
    if Path(config).is_file():
        config = str(Path(config).absolute())
    # bentoml serve runs in the bundle's folder: what is relative to this one must be made absolute.
    result = {**environ, CONFIG_VARIABLE: config}
    if flags.device:
        # BentoML would hide every GPU but the first from the worker, and cuda:1 with it.
        result.setdefault("BENTOML_DISABLE_GPU_ALLOCATION", "1")
    given = {leaf: getattr(flags, flag) for flag, leaf in LEAVES.items() if getattr(flags, flag) is not None}
    if flags.steps_mask:
        given.setdefault(LEAVES["mask_policy"], DEFAULT_MASK)
    if flags.model_path and (folder := Path(flags.model_path).expanduser()).is_dir():
        given["model.path"] = str(folder.absolute())
    cache_flags = [leaf.partition(".")[2] for leaf in given if leaf.startswith("cache.")]
    if cache_flags and not flags.cache and load_settings(result).cache is None:
        raise ConfigError(f"{', '.join(cache_flags)} would have no effect without --cache")
    if flags.cache and not cache_flags and load_settings(result).cache is None:
        result[f"{OVERRIDE_PREFIX}CACHE"] = "{}"
    if (flags.cache or cache_flags) and load_settings(result).speeds.default:
        # The flags say what a request gets that asks for nothing.
        result[f"{OVERRIDE_PREFIX}SPEEDS__DEFAULT"] = "null"
    for leaf, value in given.items():
        name = OVERRIDE_PREFIX + leaf.upper().replace(".", "__")
        result[name] = value if isinstance(value, str) else json.dumps(value)
    settings = load_settings(result)
    if "unsupported_fields" not in settings.server.model_fields_set:
        # The old server ignored such fields, and its users start this command.
        result[f"{OVERRIDE_PREFIX}SERVER__UNSUPPORTED_FIELDS"] = "warn"
    root = settings.outputs.root
    result[f"{OVERRIDE_PREFIX}OUTPUTS__ROOT"] = str(root.expanduser().absolute())
    return result


def command(flags: argparse.Namespace) -> list[str]:
    """The `bentoml serve` that takes over."""
    target = str(BUNDLE_ROOT)
    return [
        *(sys.executable, "-m", "bentoml", "serve", "service:CacheDiTServing", "--working-dir", target),
        *("--host", flags.host, "--port", str(flags.port)),
    ]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Check the settings, then become `bentoml serve`; on a mistake end with one line and exit status 2."""
    flags = parser().parse_args(arguments)
    if not Path(BUNDLE_ROOT, "service.py").is_file():
        fail("service.py is not beside src/: install the project editable from its checkout (make setup)")
    try:
        environ = environment_of(flags, os.environ)
        check_port(flags.host, flags.port)
    except ConfigError as error:
        fail(str(error))
    if idle := idle_flags(flags):
        print(f"note: without effect, as in cache_dit.serve: {', '.join(idle)}", file=sys.stderr)
    words = command(flags)
    os.execve(words[0], words, environ)


if __name__ == "__main__":
    main()
