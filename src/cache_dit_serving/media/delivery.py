"""Finished files on their way to the caller: as base64 text, as paths, or as URLs."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cache_dit_serving.media.outputs import File, Outputs


class Delivered(NamedTuple):
    """Files in the form that was asked for, and their names among the outputs if they were written."""

    texts: list[str]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Delivery:
    """The form in which one request wants its files."""

    outputs: Outputs
    form: Literal["base64", "path", "url"]
    folder: str | None
    """Below the root of the outputs."""
    base_url: str
    """Of this server as its clients know it, without a slash at its end."""

    def check(self) -> None:
        """Find out before the work is done whether the files can be written.

        Raises:
            InvalidRequest: not into this folder, or not in this form.
            InternalError: they cannot be written.
        """
        if self.form != "base64":
            self.outputs.check(self.folder, self.form)

    def deliver(self, files: Sequence[File]) -> Delivered:
        """Base64 text, or the paths or URLs of the files once all are written.

        Raises:
            ServingError: as :meth:`check`.
        """
        if self.form == "base64":
            return Delivered([base64.b64encode(content).decode("ascii") for content, _ in files])
        names = self.outputs.save_all(files, self.folder)
        texts = [self.outputs.address(name, self.form, self.base_url) for name in names]
        return Delivered(texts, tuple(names))
