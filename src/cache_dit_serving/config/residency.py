"""Places that models' weights may lie in, and the bounds on how many lie there."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cache_dit_serving.section import Section

SleepLevel = Literal["host", "disk"]
"""host: the memory of the machine, from where they are copied back; disk: nowhere, so the model is loaded again."""
Resident = Literal["always", "on-demand"]
"""always: loaded at the start and kept on the device; on-demand: loaded for a request, put away for others."""


class ResidencySettings(Section):
    """Memory that the weights of several models may take."""

    max_device_bytes: int | None = Field(
        None, ge=1, description="Bytes of weights that may lie on the device at once. Left out: as many as fit."
    )
    max_host_bytes: int | None = Field(
        None,
        ge=0,
        description="Bytes of weights of models asleep in the machine's memory; 0: none sleep there. Left out: half of "
        "that memory.",
    )
