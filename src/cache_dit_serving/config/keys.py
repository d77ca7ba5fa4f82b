"""API keys: callers of the server, their scopes and limits. Only digests of the keys are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from cache_dit_serving.config.yaml_errors import NOT_YAML
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.findings import Finding, findings_of
from cache_dit_serving.section import Section

LEAST_CHARACTERS = 16
"""Least length of a key; a shorter one could be guessed."""
Scope = Literal["generate", "admin"]


class ApiKey(Section):
    """One caller, by the digest of its key."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Name of the caller; two keys of one name are one caller.",
    )
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the key, hexadecimal; given in place of `key`."
    )
    scopes: tuple[Scope, ...] = Field(
        ("generate",),
        description="generate: generation, and the caller's own jobs. admin: also /flush_cache, /sleep, /wake, "
        "reloading weights, "
        "loading and unloading LoRAs, `profile`, and everyone's jobs.",
    )
    requests_per_minute: float | None = Field(
        None,
        ge=0.001,
        description="Generations a minute that the caller may request, at all servers that share jobs.database.",
    )
    max_live: int | None = Field(
        None,
        ge=1,
        description="Generations of the caller that wait or run at a time, at all servers that share jobs.database.",
    )

    @model_validator(mode="before")
    @classmethod
    def _digested(cls, given: Any) -> Any:
        """Replace the key by its digest, so that no later error or log can hold the key.

        A text alone is a key. Its name becomes `key-` and the first 8 digits of the digest.
        """
        if isinstance(given, str):
            digest = _digest(given)
            return {"name": f"key-{digest[:8]}", "sha256": digest}
        if isinstance(given, Mapping) and "key" in given:
            if "sha256" in given:
                raise ValueError("key and sha256 stand for the same; give one of them")
            return {**{name: value for name, value in given.items() if name != "key"}, "sha256": _digest(given["key"])}
        return given

    @model_validator(mode="after")
    def _may_do_something(self) -> Self:
        if not self.scopes:
            raise ValueError("scopes is empty; list generate, admin or both")
        return self


def _digest(key: object) -> str:
    if not isinstance(key, str) or len(key) < LEAST_CHARACTERS or not key.isascii() or not key.isprintable():
        raise ValueError(f"a key is a text of {LEAST_CHARACTERS} or more printable ASCII characters")
    if key != key.strip() or " " in key:
        raise ValueError("a key has no blanks")
    return hashlib.sha256(key.encode()).hexdigest()


def _from_text(given: Any) -> Any:
    return [part.strip() for part in given.split(",") if part.strip()] if isinstance(given, str) else given


ApiKeys = Annotated[tuple[ApiKey, ...], BeforeValidator(_from_text)]
_READ: TypeAdapter[tuple[ApiKey, ...]] = TypeAdapter(ApiKeys)


def explain_key(finding: Finding) -> str:
    """Return a finding about a list of keys in words. A long unknown field name is left out: it may be a key."""
    if finding.kind != "extra_forbidden":
        return f"'{finding.field}': {finding.message}"
    name = finding.keys[-1]
    said = f"unknown field '{name}'" if len(name) < LEAST_CHARACTERS else "unknown field"
    known = ", ".join(("key", *ApiKey.model_fields))
    return f"'{'.'.join(finding.keys[:-1])}': {said}; known ones: {known}"


def read_keys(file: Path) -> tuple[ApiKey, ...]:
    """Return the keys of a YAML or JSON file that holds a list as in `server.api_keys`.

    Raises:
        ConfigError: the file cannot be read or is no such list. The message holds nothing of its content.
    """
    try:
        given = yaml.safe_load(file.read_bytes())
    except OSError as error:
        raise _unreadable(type(error).__name__) from None
    except NOT_YAML:
        raise _unreadable("it is not YAML") from None
    try:
        return _READ.validate_python(given or ())
    except ValidationError as error:
        raise _unreadable("; ".join(map(explain_key, findings_of(error)))) from None


def _unreadable(why: str) -> ConfigError:
    return ConfigError(f"server.api_keys_file cannot be read: {why}")
