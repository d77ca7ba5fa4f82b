"""Rough size of a transformer from its configuration: tells a small test model from the model that it imitates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WIDTHS = ("hidden_size", "dim", "model_dim", "inner_dim")
DEPTHS = ("num_", "n_", "depth")
OF_A_BLOCK = 12
"""Parameters of a transformer block in units of its width squared: attention 4, feed-forward layers 8."""
FAR_SMALLER = 100


def far_smaller(config: Mapping[str, Any] | None, billions: float | None) -> bool:
    """Return whether a transformer has less than a hundredth of a model's parameters; False if either is unknown.

    The text encoders count among the model's parameters: by the defaults of diffusers' classes, the estimate for a
    catalogued model is never below a fiftieth of its figure.

    Args:
        config: the transformer's `config.json`.
        billions: parameters of all networks of the model.
    """
    estimate = _parameters(config) if config else None
    return bool(estimate and billions and estimate * FAR_SMALLER < billions * 1e9)


def _parameters(config: Mapping[str, Any]) -> float | None:
    """Return the estimated number of a transformer's parameters; None if its depth or width is unknown."""
    heads, dim = config.get("num_attention_heads"), config.get("attention_head_dim")
    width = heads * dim if isinstance(heads, int) and isinstance(dim, int) else None
    width = width or next((config[key] for key in WIDTHS if isinstance(config.get(key), int)), None)
    layers = sum(
        count
        for key, count in config.items()
        if key.startswith(DEPTHS) and ("layers" in key or "blocks" in key or key == "depth") and isinstance(count, int)
    )
    return OF_A_BLOCK * layers * width**2 if width and layers else None
