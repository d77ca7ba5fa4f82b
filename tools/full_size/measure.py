"""Footprint of a configuration's model: bytes by component, bytes of activations, operations and findings of a step."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import logging
import traceback
import warnings
from typing import Any

import torch

from cache_dit_serving.config.acceleration import QuantizeSettings
from tools.full_size import models
from tools.full_size.dataless import Drawn, Finding
from tools.full_size.drawing import SIZE, Configuration, draw

SCALE_BYTES = 4
"""Bytes of the scale of a quantised row."""
EXCLUDED: tuple[str, ...] = QuantizeSettings.model_fields["exclude_layers"].default


def footprint(name: str) -> dict[str, Any]:
    """Return the footprint of a configuration, as `footprints.json` keeps it.

    `unknown` says why there is none, `not_drawn` why it is of the weights alone.
    """
    if name in models.SHAPES["unknown"]:
        return {"unknown": models.SHAPES["unknown"][name]}
    sizes = sizes_of(name)
    return sizes | drawing_of(name)


def sizes_of(name: str) -> dict[str, Any]:
    """Return what is known of a configuration without a drawing."""
    configuration = Configuration(name)
    defaults = configuration.defaults
    made: dict[str, Any] = {
        "inputs": inputs(name),
        "width": defaults.width or SIZE,
        "height": defaults.height or SIZE,
        "frames": defaults.num_frames or 1,
        "steps": defaults.num_inference_steps,
        "dtype": configuration.model.dtype,
        "unverified": models.unverified(name),
        "weights": {},
        "eight_bit": {},
    }
    parameters = 0
    for part in models.SHAPES["models"][name]["components"]:
        found = json.dumps(models.recipe(name, part), sort_keys=True)
        made["weights"][part], count, eight_bit = _sizes(found, configuration.dtype)
        parameters += count
        if part in models.QUANTIZABLE:
            made["eight_bit"][part] = eight_bit
    return made | {"parameters": parameters}


def inputs(name: str) -> str:
    """Return a digest of what a configuration's row is made from: its shapes and its defaults."""
    configuration, model = Configuration(name), models.SHAPES["models"][name]
    shapes = [{"config": {}} | (models.recipe(name, part) or {}) for part in model["components"]]
    read = [
        [[each["class"], each["config"]] for each in shapes],
        [model["entry"], model.get("inputs"), list(model["components"])],
        configuration.model.model_dump(mode="json", include={"dtype", "vae_tiling", "vae_slicing"}),
        configuration.defaults.model_dump(mode="json"),
    ]
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()[:12]


def drawing_of(name: str) -> dict[str, Any]:
    """Return what a drawing adds to a configuration's footprint; `not_drawn` says why it failed."""
    configuration = Configuration(name)
    try:
        drawn, output = draw(configuration)
    except Exception as error:  # noqa: BLE001 (the row says so, and the next model is drawn)
        frames = [each for each in traceback.extract_tb(error.__traceback__) if "/diffusers/" in each.filename]
        where = f"{frames[-1].filename.rpartition('site-packages/')[2]}:{frames[-1].lineno}" if frames else "setting up"
        reason = models.SHAPES["models"][name].get("limit") or f"{type(error).__name__} at {where}"
        return {"not_drawn": reason}
    steps = [step for step in drawn.flop if 1 <= step <= drawn.steps]
    return _size(configuration, output) | {
        "flop_per_step": round(sum(drawn.flop[step] for step in steps) / len(steps)),
        "activations": dict(sorted(drawn.peaks.items())),
        "findings": sorted({_line(each) for each in _of_steps(drawn)}),
    }


def _size(configuration: Configuration, output: Any) -> dict[str, int]:
    """Return the size that a model draws by itself, where the configuration has no default."""
    image = getattr(output, "images", None)
    if configuration.defaults.width or not isinstance(image, torch.Tensor):
        return {}
    return {"width": image.shape[-1], "height": image.shape[-2]}


def _of_steps(drawn: Drawn) -> list[Finding]:
    return [each for each in drawn.findings if 1 <= each.step <= drawn.steps]


def _line(finding: Finding) -> str:
    return f"{finding.kind}: {finding.operation} at {finding.file}:{finding.line}"


@functools.cache
def _sizes(found: str, dtype: torch.dtype) -> tuple[int, int, int]:
    """Return a component's bytes, its parameters, and its bytes with eight-bit weights in its blocks."""
    network = models.empty(json.loads(found), dtype)
    size = models.weights(network, dtype)
    saved = sum(
        layer.weight.numel() * (dtype.itemsize - 1) - layer.out_features * SCALE_BYTES for layer in _layers(network)
    )
    return size, sum(parameter.numel() for parameter in network.parameters()), size - saved


def _layers(network: torch.nn.Module) -> list[torch.nn.Linear]:
    """Return the linear layers that `quantize` changes by default: those of the repeated blocks, but for some names."""
    repeated = set(getattr(network, "_repeated_blocks", None) or ())
    blocks = [(name, each) for name, each in network.named_modules() if type(each).__name__ in repeated]
    found = {
        f"{name}.{inner}": layer
        for name, block in blocks or [("", network)]
        for inner, layer in block.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    return [layer for name, layer in found.items() if not any(part in name for part in EXCLUDED)]


def prepare_process() -> None:
    """Keep the libraries' warnings out of this process' output, and make what some families need importable."""
    from tests.support.vision import stand_in_for_guardrail

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for library in ("diffusers", "transformers"):
        importlib.import_module(f"{library}.utils.logging").set_verbosity_error()
    stand_in_for_guardrail()
    torch.set_num_threads(1)
