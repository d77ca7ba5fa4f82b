"""Delivery of finished files to the caller: as base64 text, as paths or as URLs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pybase64

from cache_dit_serving.media.outputs import File, Outputs


class Delivered(NamedTuple):
    """Files in the requested form, and their names in the output store if they were written there."""

    texts: list[str]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Delivery:
    """The requested form of one request's files, and the store they are written to."""

    outputs: Outputs
    form: Literal["base64", "path", "url"]
    folder: str | None
    """Folder below the root of the output store; None: the root."""
    base_url: str
    """Public base URL of this server, without a trailing slash."""

    def check(self) -> None:
        """Check, before anything is generated, that the files can be written.

        Raises:
            InvalidRequest: the folder or the form is not allowed.
            InternalError: the store is not writable.
        """
        if self.form != "base64":
            self.outputs.check(self.folder, self.form)

    def deliver(self, files: Sequence[File]) -> Delivered:
        """Return the files as base64 text, or write all of them and return their paths or URLs.

        Raises:
            ServingError: as :meth:`check`.
        """
        if self.form == "base64":
            return Delivered([pybase64.b64encode_as_string(content) for content, _ in files])
        names = self.outputs.save_all(files, self.folder)
        texts = [self.outputs.address(name, self.form, self.base_url) for name in names]
        return Delivered(texts, tuple(names))
