"""Schedulers that an operator offers to requests, and those that are known by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from pydantic import Field

from cache_dit_serving.section import Section

SCHEDULER_NAME = r"^[a-z0-9][a-z0-9_]{0,63}$"
OWN = "default"
"""Name of the model's own scheduler if no known name fits it."""

Value = bool | int | float | str | None
NO_SPACING: Mapping[str, Value] = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
"""Spacing of the noise levels as the scheduler has it, without one of Karras, exponential or beta."""
FLOW: Mapping[str, Value] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@dataclass(frozen=True)
class KnownScheduler:
    """A class of diffusers with the keys of its configuration that make it the scheduler of a name."""

    scheduler_class: str
    config: Mapping[str, Value] = field(default_factory=dict)

    @property
    def changes(self) -> dict[str, Value]:
        """Keys that differ from the configuration of the model's own scheduler, if the class has them."""
        return {**NO_SPACING, "stochastic_sampling": False, **self.config}


def _spaced(name: str, known: KnownScheduler) -> dict[str, KnownScheduler]:
    """Return a scheduler with its own spacing, and with each of the other three."""
    spacings = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}
    return {name: known} | {
        f"{name}_{spacing}": KnownScheduler(known.scheduler_class, {**known.config, key: True})
        for spacing, key in spacings.items()
    }


_DPMPP_2M: Mapping[str, Value] = {"algorithm_type": "dpmsolver++", "solver_order": 2}
_DPMPP_2M_SDE: Mapping[str, Value] = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}

FOR_FLOW: Mapping[str, KnownScheduler] = {
    **_spaced("euler", KnownScheduler("FlowMatchEulerDiscreteScheduler")),
    "heun": KnownScheduler("FlowMatchHeunDiscreteScheduler"),
    "lcm": KnownScheduler("FlowMatchLCMScheduler"),
    "unipc": KnownScheduler("UniPCMultistepScheduler", FLOW),
    "dpmpp_2m": KnownScheduler("DPMSolverMultistepScheduler", {**FLOW, **_DPMPP_2M}),
    "dpmpp_2m_sde": KnownScheduler("DPMSolverMultistepScheduler", {**FLOW, **_DPMPP_2M_SDE}),
}
"""Known schedulers of flow-matching models, by name."""
FOR_NOISE: Mapping[str, KnownScheduler] = {
    "ddim": KnownScheduler("DDIMScheduler"),
    **_spaced("euler", KnownScheduler("EulerDiscreteScheduler")),
    "euler_ancestral": KnownScheduler("EulerAncestralDiscreteScheduler"),
    **_spaced("heun", KnownScheduler("HeunDiscreteScheduler")),
    "dpm2": KnownScheduler("KDPM2DiscreteScheduler"),
    "dpm2_ancestral": KnownScheduler("KDPM2AncestralDiscreteScheduler"),
    **_spaced("dpmpp_2m", KnownScheduler("DPMSolverMultistepScheduler", _DPMPP_2M)),
    **_spaced("dpmpp_2m_sde", KnownScheduler("DPMSolverMultistepScheduler", _DPMPP_2M_SDE)),
    **_spaced("unipc", KnownScheduler("UniPCMultistepScheduler")),
    "lcm": KnownScheduler("LCMScheduler"),
}
"""Known schedulers of models that predict the noise or its velocity (epsilon, v), by name."""


class OfferedScheduler(Section):
    """A scheduler that requests may choose by its name."""

    scheduler_class: str | None = Field(
        None,
        description="Name of a diffusers scheduler class. Left out: the class of a known name, else the class of the "
        "model's own scheduler.",
    )
    config: dict[str, Value] = Field(
        default_factory=dict,
        description="Keys of its configuration to change. Every other key is as in the model's own scheduler.",
    )


def by_name(offered: Any) -> Any:
    """Return the offered schedulers by name: of a list, each known name with nothing changed.

    Raises:
        ValueError: a name without a class or keys is not known.
    """
    names = offered.split(",") if isinstance(offered, str) else offered
    if isinstance(names, list | tuple):
        offered = {str(name).strip(): {} for name in names if str(name).strip()}
    if not isinstance(offered, Mapping):
        return offered
    known = FOR_FLOW.keys() | FOR_NOISE.keys()
    for name, settings in offered.items():
        if name in (OWN, "auto"):
            raise ValueError(f"{name} is the model's own scheduler, which model.scheduler changes; give another name")
        if not settings and name not in known:
            close = get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are: {', '.join(sorted(known))}"
            raise ValueError(f"{name} is no known scheduler; give it a scheduler_class or a config, or: {hint}")
    return {name: settings or {} for name, settings in offered.items()}
