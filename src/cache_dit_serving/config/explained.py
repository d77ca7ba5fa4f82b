"""Findings of pydantic about the settings, in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import ValidationError

from cache_dit_serving.config.keys import explain_key
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.findings import Finding, and_more, findings_of, known_keys, nearest_key, not_supported

API_KEYS = ("server", "api_keys")


def explain(
    error: ValidationError,
    spelt: Callable[[Sequence[str]], str] = ".".join,
    sections: Sequence[str] = tuple(Settings.model_fields),
) -> str:
    """Return pydantic's findings as one line, each with its dotted key; an unknown key with the nearest known one.

    Args:
        spelt: a key's parts -> the key as the operator has written it.
        sections: sections that the tree may hold.
    """
    return "; ".join(_sentence(finding, spelt, sections) for finding in findings_of(error)) + and_more(error)


def _sentence(finding: Finding, spelt: Callable[[Sequence[str]], str], sections: Sequence[str]) -> str:
    if finding.keys[:2] == API_KEYS:
        return explain_key(finding)
    if finding.kind == "extra_forbidden":
        *above, key = finding.keys
        known = known_keys(Settings, [part for part in above if not part.isdecimal()]) if above else sections
        nearest = nearest_key(key, known)
        hint = f"did you mean '{nearest}'?" if nearest else f"known keys: {', '.join(known)}"
        return f"unknown key '{spelt(finding.keys)}'; {not_supported(key) or hint}"
    return f"'{spelt(finding.keys)}': {finding.message}" if finding.keys else finding.message
