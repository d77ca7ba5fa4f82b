"""PEFT's configuration of an adapter, as a file's metadata or an `adapter_config.json` has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

APPLIED = frozenset({"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias"})
"""Fields that change the output of a trained adapter."""
OF_TRAINING = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "ensure_weight_tying",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_dropout",
        "megatron_config",
        "megatron_core",
        "parent_library",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
"""Fields without effect on a trained adapter: the tensors' names say which layers it changes. Dropout is one: PEFT
0.21.2 leaves the layers of a loaded adapter in training mode, and would draw at random."""
USUAL: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal"),
}
"""Values of other fields that an ordinary LoRA has."""


class UnsupportedAdapter(Exception):
    """A configuration is no JSON object, or wants more than a LoRA beside the weights. The message has the remedy."""


def parsed(text: str | bytes, source: str) -> dict[str, Any]:
    """Return the JSON object in a text.

    Raises:
        UnsupportedAdapter: it is none; the message names the source.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise UnsupportedAdapter(f"{source} is no JSON object; save the LoRA again")
    return fields


def applied(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a LoRA's configuration that PEFT has to apply.

    Raises:
        UnsupportedAdapter: a field is set that this server does not apply.
    """
    kept = {}
    for name, value in fields.items():
        if name in APPLIED:
            if value is not None:
                kept[name] = value
        elif value and name not in OF_TRAINING and value not in USUAL.get(name, ()):
            shown = value if isinstance(value, str | int | float) and str(value).isprintable() else "a value"
            named = name[:60] if name.isprintable() else "a field"
            raise UnsupportedAdapter(
                f"its PEFT configuration sets {named} to {str(shown)[:60]}, which needs more than a LoRA "
                "beside the weights; merge it into its model with PEFT, and serve that (model.path)"
            )
    return kept
