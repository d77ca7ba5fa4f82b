"""Contents of a LoRA's file, read from its header alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cache_dit_serving.loras.formats import LoraFormat, format_of, refusal
from cache_dit_serving.safetensors_header import (
    SafetensorsHeader,
    TensorEntry,
    UnreadableFile,
    read_header,
    refuse_pickle,
    renaming,
)

SUFFIX = ".safetensors"
TRIGGER_WORDS = ("modelspec.trigger_phrase", "trigger_words", "ss_trigger_words")
"""Metadata keys, by trainer, of the words that activate a LoRA in a prompt."""
ALPHA = "ss_network_alpha"
"""Metadata key of kohya's trainers for alpha."""
STEPS = ("modelspec.num_inference_steps", "num_inference_steps")
SHIFT = ("modelspec.shift", "shift")
"""Metadata keys of the sampling that a distilled LoRA is trained for."""
STEPS_IN_NAME = re.compile(r"(?<![0-9])([1-9][0-9]?)[-_ ]?steps?(?![a-z])", re.IGNORECASE)
"""Number of steps in a file's name, as in `Qwen-Image-Lightning-8steps-V1.0`. Longer numbers are steps of training."""
SHIFT_IN_NAME = re.compile(r"(?<![a-z])shift[-_ ]?([0-9]+(?:\.[0-9]+)?)", re.IGNORECASE)
DOWN = re.compile(r"(?P<layer>.+?)[._]lora(_linear_layer)?[._](?P<side>A|down)(\.\w+)?\.weight$")
"""Name of a LoRA's first matrix, whose first dimension is the rank."""
LOKR = re.compile(r"(?P<layer>.+)\.lokr_w2(_[ab])?$")
PARTS = (
    (re.compile(r"(base_model\.model\.)?text_encoders?\.clip_l|lora_te1?_|text_encoder\."), "text_encoder"),
    (re.compile(r"lora_te2_|text_encoder_2\.|text_encoders\.(t5xxl|clip_g)"), "text_encoder_2"),
    (re.compile(r"lora_te3_|text_encoder_3\."), "text_encoder_3"),
)
"""Components other than the denoiser, by the beginnings of names."""
DENOISER = "transformer"


class Sampling(NamedTuple):
    """Sampling that a distilled LoRA is trained for, as far as its file says. It is suggested, never applied."""

    steps: int | None
    shift: float | None


@dataclass(frozen=True)
class LoraFile:
    """A LoRA's file, by its header."""

    format: LoraFormat
    parts: Mapping[str, int]
    """Number of layers, by component as the file's names tell it."""
    ranks: tuple[int, ...]
    """Ranks of its layers, ascending, each once; empty for a LoKr with whole matrices."""
    alpha: float | None
    """Alpha of all layers, as kohya's metadata has it; None: it stands in tensors or nowhere."""
    trigger_words: str | None
    """Words to put into the prompt, from the metadata."""
    sampling: Sampling
    header: SafetensorsHeader


def read_lora_file(file: Path) -> LoraFile:
    """Return the contents of a LoRA's file by its header.

    Raises:
        UnreadableFile: the file is no intact safetensors file, holds something else, or its format is not loaded.
    """
    refuse_pickle(file.name)
    if file.suffix != SUFFIX:
        remedy = renaming(file.suffix) or "; convert it"
        raise UnreadableFile(f"only .safetensors files are loaded, not {file.suffix or 'others'}{remedy}")
    return lora_file_of(file.stem, read_header(file))


def lora_file_of(stem: str, header: SafetensorsHeader) -> LoraFile:
    """Return the contents of a LoRA's file by its header, which may be on the hub alone.

    Args:
        stem: the file's name without its suffix.

    Raises:
        UnreadableFile: the file holds something else, or its format is not loaded.
    """
    found = format_of(header.tensors)
    if found is None or refusal(header.tensors, found):
        raise UnreadableFile(refusal(header.tensors, found) or "its format is unknown")
    layers = {match["layer"]: entry for name, entry in header.tensors.items() if (match := DOWN.match(name))}
    lokr = {match["layer"] for name in header.tensors if (match := LOKR.match(name))}
    metadata = header.metadata
    return LoraFile(
        format=found,
        parts=Counter(_part(layer) for layer in (*layers, *lokr)),
        ranks=tuple(sorted({entry.shape[0] for entry in layers.values() if entry.shape} | _lokr_ranks(header))),
        alpha=_number(metadata.get(ALPHA)),
        trigger_words=next((metadata[key] for key in TRIGGER_WORDS if metadata.get(key)), None),
        sampling=_sampling(stem, metadata),
        header=header,
    )


def _part(layer: str) -> str:
    return next((part for names, part in PARTS if names.match(layer)), DENOISER)


def _lokr_ranks(header: SafetensorsHeader) -> set[int]:
    def rank(entry: TensorEntry) -> int:
        return entry.shape[0]

    return {rank(entry) for name, entry in header.tensors.items() if name.endswith(".lokr_w2_b") and entry.shape}


def _sampling(stem: str, metadata: Mapping[str, str]) -> Sampling:
    steps = _first_number(metadata, STEPS) or _named(STEPS_IN_NAME, stem)
    return Sampling(int(steps) if steps else None, _first_number(metadata, SHIFT) or _named(SHIFT_IN_NAME, stem))


def _first_number(metadata: Mapping[str, str], keys: tuple[str, ...]) -> float | None:
    return next((number for key in keys if (number := _number(metadata.get(key)))), None)


def _named(pattern: re.Pattern[str], stem: str) -> float | None:
    found = pattern.search(stem)
    return float(found[1]) if found else None


def _number(text: str | None) -> float | None:
    with suppress(TypeError, ValueError):
        number = float(text or "")
        if 0 < number < 1e6:
            return number
    return None
