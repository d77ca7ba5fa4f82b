"""Pictures by diffusers and cache-dit alone, each setting in a process that never saw another.

`python -m tests.support.fresh FOLDER` writes one `NAME.npy` for each of CASES, from the project's weights alone. It may
be forked from a process that has imported the project: no code of that replaces any of the libraries' then.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

PROMPT, SEED, STEPS = "a panda on a pink background", 5, 10
GUIDED = {"true_cfg_scale": 3.0, "negative_prompt": "a cat"}
BASE = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "residual_diff_threshold": 0.3, "max_warmup_steps": 4}

# Name: what goes into the cache's own configuration, the calibrator's, and the call.
CASES: dict[str, tuple[dict[str, Any] | None, dict[str, Any], dict[str, Any]]] = {
    "uncached": (None, {}, {}),
    "plain": ({}, {}, {}),
    "threshold": ({"residual_diff_threshold": 0.6}, {}, {}),
    "prune": ({"cache_type": "DBPrune"}, {}, {}),
    "fn-bn": ({"Fn_compute_blocks": 3, "Bn_compute_blocks": 2}, {}, {}),
    "prune-fn-bn": ({"cache_type": "DBPrune", "Fn_compute_blocks": 5, "Bn_compute_blocks": 3}, {}, {}),
    "prune-ids": ({"cache_type": "DBPrune", "non_prune_block_ids": [2, 3, 4]}, {}, {}),
    "prune-dynamic": ({"cache_type": "DBPrune", "enable_dynamic_prune_threshold": True}, {}, {}),
    "taylorseer": ({}, {"enable_taylorseer": True}, {}),
    "taylorseer-2": ({}, {"enable_taylorseer": True, "taylorseer_order": 2, "enable_encoder_taylorseer": True}, {}),
    "guided-uncached": (None, {}, GUIDED),
    "guided": ({}, {}, GUIDED),
    "foca": ({}, {"enable_foca": True}, {}),
    "dmd": ({"max_warmup_steps": 6}, {"enable_dmd": True, "dmd_history": 5}, {}),
    "limits": ({"max_cached_steps": 4, "max_continuous_cached_steps": 2, "warmup_interval": 2}, {}, {}),
    "accumulated": ({"max_accumulated_residual_diff_threshold": 0.5}, {}, {}),
    "policy": ({"steps_computation_mask": "fast", "steps_computation_policy": "static"}, {}, {}),
    "bins": ({"steps_computation_mask": {"compute_bins": [4, 1, 1], "cache_bins": [1, 1, 9]}}, {}, {}),
    "list": ({"steps_computation_mask": [1, 1, 1, 1, 0, 0, 1, 0, 0, 1]}, {}, {}),
    "refresh": ({"force_refresh_step_hint": 6, "max_warmup_steps": 2}, {}, {}),
    "refresh-repeat": (
        {"force_refresh_step_hint": 4, "force_refresh_step_policy": "repeat", "max_warmup_steps": 2},
        {"enable_taylorseer": True},
        {},
    ),
    "guided-prune-taylorseer": ({"cache_type": "DBPrune"}, {"enable_taylorseer": True}, GUIDED),
    "guided-one-diff": ({"cfg_diff_compute_separate": False, "residual_diff_threshold": 0.15}, {}, GUIDED),
}
CALIBRATORS = {"taylorseer": "TaylorSeerCalibratorConfig", "foca": "FoCaCalibratorConfig", "dmd": "DMDCalibratorConfig"}


LIBRARIES = ("torch", "diffusers", "transformers", "cache_dit")


def replaced() -> list[str]:
    """Names in the libraries' modules and classes behind which code of the project's or of the tests' stands."""

    def ours(value: object) -> bool:
        return str(getattr(value, "__module__", "")).partition(".")[0] in ("cache_dit_serving", "tests")

    found = []
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in LIBRARIES:
            continue
        for key, value in list(vars(module).items()):
            found += [f"{name}.{key}"] if ours(value) else []
            if isinstance(value, type) and value.__module__ == name:
                found += [f"{name}.{key}.{inner}" for inner, each in vars(value).items() if ours(each)]
    return found


def main() -> None:
    if found := replaced():
        raise SystemExit(f"not diffusers and cache-dit alone: {', '.join(found)}")
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")
    import torch
    from diffusers import FluxPipeline

    from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER

    torch.set_num_threads(1)
    pipe: Any = FluxPipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    for name in CASES:
        child = os.fork()
        if child == 0:
            draw(pipe, name, Path(sys.argv[1]))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit(f"{name} failed")


def draw(pipe: Any, name: str, folder: Path) -> None:
    import numpy as np
    import torch

    settings, calibrator, arguments = CASES[name]
    if settings is not None:
        enable(pipe, {**BASE, **settings}, calibrator, two_passes=bool(arguments))
    output = pipe(
        prompt=PROMPT,
        width=96,
        height=96,
        num_inference_steps=STEPS,
        max_sequence_length=32,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="pil",
        **arguments,
    )
    np.save(folder / f"{name}.npy", np.asarray(output.images[0]))


def enable(pipe: Any, settings: dict[str, Any], calibrator: dict[str, Any], two_passes: bool) -> None:
    import cache_dit

    mask = settings.pop("steps_computation_mask", None)
    if isinstance(mask, str):
        mask = cache_dit.steps_mask(mask_policy=mask, total_steps=STEPS)
    elif isinstance(mask, dict):
        mask = cache_dit.steps_mask(**mask, total_steps=STEPS)
    prune = settings.pop("cache_type", None) == "DBPrune"
    config = (cache_dit.DBPruneConfig if prune else cache_dit.DBCacheConfig)(
        **settings, steps_computation_mask=mask, enable_separate_cfg=two_passes
    )
    calibrator_config = None
    for switch, class_name in CALIBRATORS.items():
        if calibrator.get(f"enable_{switch}"):
            own = {key: value for key, value in calibrator.items() if not key.startswith("enable_")}
            if switch != "dmd":  # its default is on
                own["enable_encoder_calibrator"] = calibrator.get(f"enable_encoder_{switch}", False)
            calibrator_config = getattr(cache_dit, class_name)(enable_calibrator=True, **own)
    cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=calibrator_config)


if __name__ == "__main__":
    main()
