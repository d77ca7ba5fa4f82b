"""Points of the search (settings and steps), and the cases that each is measured on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.caching.step_masks import MaskBins


class Case(NamedTuple):
    """One output that every point draws."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Point:
    """Cache settings and a number of steps; without settings it is an uncached run."""

    steps: int
    settings: CacheSettings | None = None

    @property
    def key(self) -> str:
        """Name of the point, equal for points of equal effect."""
        return f"{self.steps}-{self.settings.digest() if self.settings else 'uncached'}"

    def as_json(self) -> dict[str, Any]:
        return {"steps": self.steps, "settings": self.settings.effective() if self.settings else None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Point:
        settings = value["settings"]
        return cls(value["steps"], None if settings is None else CacheSettings.model_validate(settings))

    def described(self) -> str:
        """Return the point in a few words: the settings that differ from cache-dit's defaults."""
        if self.settings is None:
            return f"no cache, {self.steps} steps"
        words = ", ".join(f"{_short(name)} {_text(value)}" for name, value in differing(self.settings).items())
        return f"{self.steps} steps, {words}"


def differing(settings: CacheSettings) -> dict[str, Any]:
    """Return the effective settings that differ from the defaults, and always Fn, threshold and warm-up where in force.

    As the section `cache` of a configuration they have the same effect as all of them.
    """
    defaults = CacheSettings().model_dump(mode="json")
    always = ("Fn_compute_blocks", "residual_diff_threshold", "max_warmup_steps")
    effective = settings.effective()
    return {name: value for name, value in effective.items() if name in always or value != defaults.get(name)}


SHORT = {
    "Fn_compute_blocks": "Fn",
    "Bn_compute_blocks": "Bn",
    "residual_diff_threshold": "threshold",
    "max_warmup_steps": "warm-up",
    "max_continuous_cached_steps": "in a row",
    "taylorseer_order": "order",
    "enable_taylorseer": "TaylorSeer",
    "enable_foca": "FoCa",
    "enable_dmd": "DMD",
    "steps_computation_mask": "mask",
    "steps_computation_policy": "policy",
    "cache_type": "type",
}
"""Names of settings in tables."""


def _short(name: str) -> str:
    return SHORT.get(name, name)


def _text(value: Any) -> str:
    if value is True:
        return "on"
    if isinstance(value, dict) and value.keys() == MaskBins.model_fields.keys():
        return f"{value['compute_bins'][0]} computed, then {value['cache_bins'][0]} reused for each one"
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)


def cases_of(prompts: Sequence[str], seeds: Sequence[int], count: int) -> list[Case]:
    """Return `count` cases, or all if there are fewer: each prompt once before any has a second seed.

    The first prompts take the seeds in turn, so that few cases hold several seeds.
    """
    rounds = [
        Case(prompt, seeds[(index + shift) % len(seeds)])
        for shift in range(len(seeds))
        for index, prompt in enumerate(prompts)
    ]
    return rounds[:count]
