"""Models by their configurations alone, in folders that `model.weights: random` serves. Nothing is downloaded.

`models/*.json` hold each component's class and the keys of its published config.json, and beside them the keys that
make it tiny, to try a benchmark on a CPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from tests.support.families import byte_tokenizer

MODELS = {file.stem: file for file in sorted((Path(__file__).parent / "models").glob("*.json"))}
"""By name."""


def request_of(model: str) -> dict[str, Any]:
    """The fields of its usual request, but for the prompt and the size."""
    fields: dict[str, Any] = _read(model)["request"]
    return fields


def write(model: str, folder: Path, *, tiny: bool) -> None:
    """The model's folder as it lies on the hub, without weights and with a tokenizer of bytes.

    Raises:
        SystemExit: the model is not tiny, and there is no GPU to make its weights on.
    """
    if not tiny and not torch.cuda.is_available():
        sys.exit("there is no GPU here, and the weights would fill this machine's memory; --tiny tries the script")
    read = _read(model)
    index: dict[str, Any] = {"_class_name": read["pipeline"], "_diffusers_version": "0.42.1"}
    for name, component in read["components"].items():
        index[name] = component["class"]
        if "max_length" in component:
            tokenizer = byte_tokenizer(component["max_length"])
            tokenizer.save_pretrained(folder / name)
            index[name] = ["transformers", type(tokenizer).__name__]
            continue
        config = component["config"] | (component.get("tiny", {}) if tiny else {})
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (folder / name).mkdir(parents=True)
        (folder / name / file).write_text(
            json.dumps({"_class_name": component["class"][1], **config}), encoding="utf-8"
        )
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def _read(model: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(MODELS[model].read_text(encoding="utf-8"))
    return read
