"""Requests of a benchmark: prompts, a mix of bodies, and seeds, all chosen by one seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from cache_dit_serving.config.yaml_errors import NOT_YAML
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.findings import findings_of
from cache_dit_serving.measure import prompts

MAX_FILE_BYTES = 4 << 20
"""Length of a file of prompts, or of a mix."""
POINT_SEEDS = 1_000_000
"""Seeds between those of one point and the next."""


class Entry(BaseModel):
    """Entry of a mix: a request body and its share of the requests."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str = Field("", max_length=60)
    weight: float = Field(1.0, gt=0)
    body: dict[str, Any] = {}


class Source:
    """Requests by number. The same seed gives the same requests, on whatever server."""

    def __init__(self, prompts: Sequence[str], mix: Sequence[Entry], seed: int | None) -> None:
        """
        Args:
            seed: seed of the first request, the next have the next ones; None: requests have no seed, so that each
                run draws others.
        """
        self._mix, self._seed = mix, seed
        self._prompts = list(prompts)
        random.Random(f"prompts {seed or 0}").shuffle(self._prompts)
        self._weights = [entry.weight for entry in mix]

    def request(self, point: int, number: int) -> tuple[str, dict[str, Any]]:
        """Return the name and body of a request. Point 0 is the warm-up."""
        choice = random.Random(f"{self._seed or 0} {point} {number}")
        (entry,) = choice.choices(self._mix, self._weights)
        # A point begins at other prompts than the one before: a server may remember a prompt's embeddings.
        body: dict[str, Any] = {"prompt": self._prompts[(number + point * 101) % len(self._prompts)]}
        if self._seed is not None:
            body["seed"] = self._seed + point * POINT_SEEDS + number
        return entry.name, body | entry.body


def mix_of_values(values: Mapping[str, Sequence[Any]]) -> list[Entry]:
    """Return a mix of all combinations of values, equally often. A `size` is a pair of width and height."""
    entries = []
    for combination in itertools.product(*values.values()):
        body: dict[str, Any] = {}
        for name, value in zip(values, combination, strict=True):
            body |= {"width": value[0], "height": value[1]} if name == "size" else {name: value}
        several = [name for name, given in values.items() if len(given) > 1]
        spelt = {"size": "{width}x{height}"}
        name = " ".join(spelt.get(each, each + " {" + each + "}").format(**body) for each in several)
        entries.append(Entry(name=name, body=body))
    return entries


def read_mix(path: Path) -> list[Entry]:
    """Return the entries of a YAML file: a list, or a list below `mix`.

    Raises:
        ConfigError: names the field.
    """
    try:
        value = yaml.safe_load(_read(path, "--mix"))
    except NOT_YAML as error:
        raise ConfigError("--mix: the file is not valid YAML") from error
    listed = value.get("mix") if isinstance(value, dict) and set(value) == {"mix"} else value
    if not isinstance(listed, list) or not listed:
        raise ConfigError("--mix: the file holds no list of entries, each with `weight` and `body`")
    try:
        entries = TypeAdapter(list[Entry]).validate_python(listed)
    except ValidationError as error:
        finding = findings_of(error)[0]
        reason = finding.message or "is no field of an entry; there are name, weight and body"
        raise ConfigError(f"--mix: {finding.field}: {reason}") from error
    return [entry.model_copy(update={"name": entry.name or f"entry {at}"}) for at, entry in enumerate(entries, 1)]


def read_prompts(path: Path | None) -> list[str]:
    """Return the prompts of a text file, one a line; None: the 200 that ship with this package.

    Raises:
        ConfigError: the file cannot be read, or holds none.
    """
    text = prompts.varied() if path is None else _read(path, "--prompts")
    found = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not found:
        raise ConfigError("--prompts: the file holds no prompt; write one a line")
    return found


def _read(path: Path, flag: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{flag}: {path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{flag}: {path} is longer than {MAX_FILE_BYTES:,} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{flag}: {path} is not UTF-8 text") from error
