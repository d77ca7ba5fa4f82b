"""Places that a model's weights may lie in while it cannot draw, and how a model among several comes into memory."""

from __future__ import annotations

from typing import Literal

SleepLevel = Literal["host", "disk"]
"""host: the memory of the machine, from where they are copied back; disk: nowhere, so the model is loaded again."""

Resident = Literal["always", "on-demand"]
"""always: loaded at the start, and never gives way to another model; on-demand: loaded by its first request (the
default model at the start), and gives way to others, the one that was used last at the last."""
