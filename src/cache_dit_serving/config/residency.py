"""Places that a model's weights may lie in while the server is asleep."""

from __future__ import annotations

from typing import Literal

SleepLevel = Literal["host", "disk"]
"""host: the memory of the machine, from where they are copied back; disk: nowhere, so the model is loaded again."""
