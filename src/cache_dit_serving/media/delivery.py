"""Finished files on their way to the caller: as base64 text, as paths, or as URLs."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from cache_dit_serving.media.outputs import OutputFolder

OUTPUTS_ROUTE = "/outputs"
"""Where the files of the output folder are served."""
File = tuple[bytes, str]
"""Content and file extension."""


class Delivered(NamedTuple):
    """Files in the form that was asked for, and where they lie on this machine if they do."""

    texts: list[str]
    paths: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Delivery:
    """The form in which one request wants its files."""

    outputs: OutputFolder
    form: Literal["base64", "path", "url"]
    folder: str | None
    """Below the root of the outputs."""
    base_url: str
    """Of this server as its clients know it, without a slash at its end."""

    def check(self) -> None:
        """Find out before the work is done whether the files can be written.

        Raises:
            InvalidRequest: the folder leads out of the root, or is a file.
            InternalError: it cannot be written.
        """
        if self.form != "base64":
            self.outputs.folder(self.folder)

    def deliver(self, files: Sequence[File]) -> Delivered:
        """Base64 text, or the paths or URLs of the files once all are written.

        Raises:
            ServingError: as :meth:`check`.
        """
        if self.form == "base64":
            return Delivered([base64.b64encode(content).decode("ascii") for content, _ in files])
        paths = self.outputs.save_all(files, self.outputs.folder(self.folder))
        if self.form == "path":
            return Delivered([str(path) for path in paths], tuple(paths))
        root = self.outputs.root
        urls = [f"{self.base_url}{OUTPUTS_ROUTE}/{path.relative_to(root).as_posix()}" for path in paths]
        return Delivered(urls, tuple(paths))
