"""Writes a trained pipeline as a stock model folder in bfloat16."""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import FluxPipeline


def export(pipeline: FluxPipeline, folder: Path) -> None:
    """Save `pipeline` so that `DiffusionPipeline.from_pretrained(folder)` loads it with any recent transformers."""
    parts = ("vae", "transformer", "text_encoder", "text_encoder_2")
    for part in parts:
        getattr(pipeline, part).cpu().bfloat16()
    for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
        # Otherwise the padding and the length of the last call are saved with it (transformers 5.23).
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    pipeline.save_pretrained(folder, safe_serialization=True)
    for part in parts:
        getattr(pipeline, part).float()
    for name in ("model_index.json", "tokenizer/tokenizer_config.json", "tokenizer_2/tokenizer_config.json"):
        path = folder / name
        path.write_text(json.dumps(_portable(json.loads(path.read_text())), indent=2) + "\n")
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")


def _portable(config: dict[str, object]) -> dict[str, object]:
    """The config without the paths of this machine and with the tokenizer's older, still accepted class name.

    transformers 5 calls PreTrainedTokenizerFast "TokenizersBackend", which transformers 4 does not know.
    """
    text = json.dumps({key: value for key, value in config.items() if key != "_name_or_path"})
    portable: dict[str, object] = json.loads(text.replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    return portable
