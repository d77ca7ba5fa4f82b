"""Builds a family's pipeline from its entry in `families.json` and saves it, as a model's folder on the hub is saved.

An entry holds the constructor arguments of every component, small enough for a fraction of a second, and a call that
the class answers. Weights are random but fixed by a seed.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from tests.support.vision import GuardrailStandIn

ENTRIES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "families.json").read_text(encoding="utf-8"))
"""By class, without `Pipeline`; Wan 2.2 beside 2.1."""

SPECIAL_TOKENS = (  # noqa: SIM905 (one to a line would say no more)
    "<pad> <s> </s> <unk> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|> "
    "<|vision_pad|> <image> <|endoftext|> <bos> <eos> [CLS] [SEP] [MASK] [gMASK] <sop>"
).split()
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type']=='image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type']=='text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DENOISERS = ("transformer", "transformer_2", "prior", "controlnet")


def save_family(name: str, folder: Path) -> Path:
    """The pipeline of an entry, saved into a folder."""
    build_pipeline(name).save_pretrained(folder)
    return folder


def save_audio(folder: Path) -> Path:
    """StableAudio that makes 0.512 s at 1 kHz: its entry makes 7 samples at 4 Hz."""
    save_family("StableAudio", folder)
    for component, changes in {"vae": {"sampling_rate": 1_000}, "transformer": {"sample_size": 256}}.items():
        config = folder / component / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    return folder


def build_pipeline(name: str) -> Any:
    """The pipeline of an entry, in this process."""
    import diffusers

    entry = ENTRIES[name]
    components = {part: made(recipe) for part, recipe in entry["components"].items()}
    for part in DENOISERS:
        if components.get(part) is not None:
            _randomise_zeros(components[part])
    return getattr(diffusers, entry["class"])(**components)


def made(recipe: dict[str, Any] | None) -> Any:
    """The component that an entry describes."""
    import torch

    if recipe is None:
        return None
    if "value" in recipe:
        return recipe["value"]
    if "tokenizer" in recipe:
        return byte_tokenizer(recipe["max_length"])
    if "stub" in recipe:
        return GuardrailStandIn()
    if "processor" in recipe:
        parts = {name: made(part) for name, part in recipe["processor"].items()}
        processor = getattr(importlib.import_module("transformers"), recipe["class"])
        return processor(**parts, chat_template=CHAT_TEMPLATE)
    module = importlib.import_module(recipe.get("module", recipe["library"]))
    cls = getattr(module, recipe["class"])
    torch.manual_seed(0)
    if recipe["library"] == "diffusers":
        component = cls.from_config(recipe["config"])
    elif hasattr(cls, "config_class"):
        component = cls(cls.config_class(**recipe["config"]))
    else:
        component = cls(**recipe["config"])
    return component.eval() if hasattr(component, "eval") else component


def byte_tokenizer(max_length: int) -> Any:
    """A tokenizer of 276 tokens: the special ones that families look up, then one for each byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_bos_token": "<|vision_start|>",
        },
        chat_template=CHAT_TEMPLATE,
    )


def _randomise_zeros(model: Any) -> None:
    """Heads and gates begin at zero in several families, which would make all outputs equal."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 0 and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
