"""Fields by the names under which a client sent them, in errors and warnings about them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cache_dit_serving.errors import ServingError
from cache_dit_serving.schemas.answers import RequestWarning


@dataclass(frozen=True)
class SentAs:
    """Names of a request's fields in the dialect or form that it came in."""

    names: Mapping[str, str] = field(default_factory=dict)
    """The sent name of a field, or of a place in one such as `image_urls.0`."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """The sent name of what a field is a part of: `width` of `size`."""

    def __or__(self, other: SentAs) -> SentAs:
        return SentAs({**self.names, **other.names}, {**self.parts, **other.parts})

    def renamed(self, param: str | None, message: str) -> tuple[str | None, str]:
        """A field, and a text about it, with each field under its sent name."""
        if param is not None and param in self.parts:
            return self.parts[param], f"{self.parts[param]}: {self._text(message)}"
        return (None if param is None else self._text(param)), self._text(message)

    def warning(self, warning: RequestWarning) -> RequestWarning:
        param, message = self.renamed(warning.param, warning.message)
        return warning.model_copy(update={"param": param, "message": message})

    def error(self, error: dict[str, Any]) -> dict[str, Any]:
        """The object `error` of an answer."""
        param, message = self.renamed(error.get("param"), error["message"])
        return error | {"param": param, "message": message}

    @contextmanager
    def in_errors(self) -> Iterator[None]:
        """Rename the fields of an error on its way."""
        try:
            yield
        except ServingError as error:
            error.param, error.message = self.renamed(error.param, error.message)
            raise

    def _text(self, text: str) -> str:
        return self._pattern.sub(lambda found: self.names[found[0]], text) if self.names else text

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.names, key=len, reverse=True)
        return re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
