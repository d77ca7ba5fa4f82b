"""A family's entry by diffusers and cache-dit alone, which know nothing of this server."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cache_dit
import diffusers
import numpy as np
import torch
from cache_dit import DBCacheConfig, ParamsModifier
from PIL import Image

from tests.support.families import ENTRIES
from tests.support.images import apple

SEED = 3
NEVER_PATCHED = frozenset(
    {"vae", "text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4", "image_encoder"}
)
"""Components that cache-dit leaves as they are, and that a call leaves so too; LTX-2's calls change its tokenizer."""


def by_diffusers(
    name: str,
    folder: Path,
    cache: DBCacheConfig | None = None,
    modifiers: list[ParamsModifier] | None = None,
    prepare: Callable[[Any], None] = lambda pipe: None,
) -> np.ndarray[Any, Any]:
    """What diffusers makes of an entry's call by itself, as floats.

    Args:
        cache: with cache-dit, too.
        modifiers: and settings of its own for each part.
        prepare: done to the pipeline before.
    """
    pipe = loaded_by_diffusers(name, folder)
    if cache is not None:
        cache_dit.enable_cache(pipe, cache_config=cache, params_modifiers=modifiers)
    prepare(pipe)
    return drawn_by_diffusers(name, pipe)


def loaded_by_diffusers(name: str, folder: Path, **components: Any) -> Any:
    """An entry's pipeline as diffusers loads it.

    Args:
        components: by name; those are not read again.
    """
    entry = ENTRIES[name]
    dtype = getattr(torch, (entry.get("load") or {}).get("torch_dtype", "float32"))
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=dtype, **components)
    pipe.set_progress_bar_config(disable=True)
    for path in entry.get("after_load") or ():
        part, method = path.split(".")
        getattr(getattr(pipe, part), method)()
    return pipe


def drawn_by_diffusers(name: str, pipe: Any) -> np.ndarray[Any, Any]:
    """What a pipeline makes of an entry's call, as floats."""
    call = arguments_of(name)
    if "prompt" in inspect.signature(type(pipe).__call__).parameters and not call.get("prompt"):
        call["prompt"] = "an apple"
    call["output_type"] = "np"
    torch.manual_seed(SEED)
    return _as_floats(pipe(**call, generator=torch.Generator("cpu").manual_seed(SEED))[0][0])


def cached_by_diffusers(name: str, folder: Path, plain: Any, cache: DBCacheConfig) -> np.ndarray[Any, Any]:
    """What diffusers makes of an entry's call with cache-dit, which changes the denoisers alone: the other components
    are those of a pipeline that is loaded."""
    kept = {part: value for part, value in plain.components.items() if part in NEVER_PATCHED and value is not None}
    pipe = loaded_by_diffusers(name, folder, **kept)
    cache_dit.enable_cache(pipe, cache_config=cache)
    return drawn_by_diffusers(name, pipe)


def arguments_of(name: str) -> dict[str, Any]:
    """An entry's call with its pictures and videos made."""
    return {key: _made(value) for key, value in ENTRIES[name]["call"].items()}


def _made(value: Any) -> Any:
    if isinstance(value, list):
        return [_made(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "image" in value:
        return apple(*value["image"]).convert(value.get("mode", "RGB"))
    if "mask" in value:
        return _half(*value["mask"])
    if "video" in value or "mask_video" in value:
        frames, height, width = value.get("video") or value["mask_video"]
        make = _turned if "video" in value else lambda width, height, _: _half(width, height)
        return [make(width, height, index) for index in range(frames)]
    if "tensor" in value:
        generator = torch.Generator().manual_seed(SEED)
        if value["dtype"] == "int64":
            return torch.randint(0, 4, value["tensor"], generator=generator)
        return torch.rand(value["tensor"], generator=generator)
    if "object" in value:
        recipe = value["object"]
        cls = getattr(importlib.import_module(recipe["module"]), recipe["class"])
        return cls(**{key: _made(each) for key, each in recipe["args"].items()})
    return value


def _half(width: int, height: int) -> Image.Image:
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (width // 2, 0, width, height))
    return mask


def _turned(width: int, height: int, index: int) -> Image.Image:
    return apple(width, height).rotate(10 * index)


def _as_floats(made: Any) -> np.ndarray[Any, Any]:
    array = made if isinstance(made, np.ndarray) else np.asarray(made)
    return (array / 255).astype(np.float32) if array.dtype.kind in "iu" else array
