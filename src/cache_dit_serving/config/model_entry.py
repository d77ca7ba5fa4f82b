"""One entry of the list of models, as it is written."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from cache_dit_serving.config.residency import Resident
from cache_dit_serving.section import Section

MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.:/-]{0,199}$"


class ModelEntry(Section):
    """A model of a server that has several."""

    name: str = Field(pattern=MODEL_NAME, description="Name in requests.")
    configuration: str | None = Field(
        None,
        min_length=1,
        description="A name in `configs/`, or a YAML file; its path is relative to the file that names it.",
    )
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="Sections of this model, over those of `configuration` key by key.",
    )
    aliases: tuple[Annotated[str, Field(pattern=MODEL_NAME)], ...] = Field(
        (), max_length=32, description="Further names that requests may use, such as `dall-e-3`."
    )
    resident: Resident = Field(
        "on-demand",
        description="always: loaded at the start, and kept on the device; on-demand: loaded for its first request, and "
        "put away when others need the memory.",
    )
    default: bool = Field(
        False, description="The model of requests that name none: one at most. Without any, the first of the list."
    )

    @model_validator(mode="after")
    def _says_what(self) -> Self:
        if self.configuration is None and not self.settings:
            raise ValueError(f"model {self.name} has neither configuration nor settings; give one of them")
        return self


def check_names(entries: tuple[ModelEntry, ...]) -> tuple[ModelEntry, ...]:
    """Return the entries.

    Raises:
        ValueError: two of them share a name, or are both the default.
    """
    names = [name for entry in entries for name in (entry.name, *entry.aliases)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two names or aliases are {twice}; each must be there once")
    if len(defaults := [entry.name for entry in entries if entry.default]) > 1:
        raise ValueError(f"{' and '.join(defaults)} cannot all be the default; leave one")
    return entries
