"""Errors of PyYAML for a text that cannot be read, in words that do not repeat the text."""

from __future__ import annotations

import yaml

NOT_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)
"""Exceptions of PyYAML for invalid text. PyYAML 6 raises ValueError for a date that does not exist, LookupError or
AttributeError for a value that its tag does not allow (`!!bool x`, `!!timestamp x`), and RecursionError for deep
nesting."""


def place_of(error: Exception) -> str:
    """Return the place and kind of an error in YAML, without the text there: it may be a secret."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"byte {error.position} is no text in UTF-8; save the file as UTF-8"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else "it holds no valid value"
