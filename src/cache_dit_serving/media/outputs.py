"""The one folder that holds outputs: names chosen by the server, files that appear whole or not at all."""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cache_dit_serving.errors import InternalError, InvalidRequest, NotFound
from cache_dit_serving.media.formats import MEDIA_TYPES

logger = logging.getLogger(__name__)


class OutputFolder:
    """Files under one root; nothing is read or written outside it, links included."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()

    def folder(self, name: str | None) -> Path:
        """The folder of that name below the root, made if it is not there; None is the root.

        Raises:
            InvalidRequest: it leads out of the root by a link, or is a file.
            InternalError: it cannot be written.
        """
        directory = self.root / (name or "")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not self._holds(directory):
                raise InvalidRequest("output_dir leads out of the server's output folder", param="output_dir")
            if any(part.is_file() for part in (directory, *directory.parents)):
                raise InvalidRequest("output_dir names a file, not a folder", param="output_dir")
            directory.mkdir(parents=True, exist_ok=True)
            if not os.access(directory, os.W_OK):
                raise PermissionError(f"{directory} is not writable")
        except OSError as error:
            raise self._unwritable() from error
        return directory

    def save_all(self, files: Sequence[tuple[bytes, str]], folder: Path) -> list[Path]:
        """Write files, each given with its extension: all of them, or none where one cannot be written.

        Raises:
            InternalError: one cannot be written.
        """
        paths: list[Path] = []
        try:
            for content, extension in files:
                paths.append(self.save(content, folder, extension=extension))
        except BaseException:
            for path in paths:
                path.unlink(missing_ok=True)
            raise
        return paths

    def save(self, content: bytes, folder: Path, *, extension: str) -> Path:
        """Write a file of a new name into a folder from :meth:`folder`; returns its path.

        The name is random: one that a caller could choose or guess would let requests reach each other's pictures.

        Raises:
            InternalError: it cannot be written.
        """
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(12)}.{extension}"
        try:
            descriptor, partial = tempfile.mkstemp(dir=folder, prefix=".partial-")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                # mkstemp's 0600 would keep the file from a client of another user on this machine.
                os.chmod(partial, 0o644)
                os.replace(partial, folder / name)
            except BaseException:
                os.unlink(partial)
                raise
        except OSError as error:
            raise self._unwritable() from error
        return folder / name

    def find(self, relative: str) -> tuple[Path, str]:
        """An output's file and media type, by its path below the root.

        Raises:
            NotFound: there is none, or the path leads out of the root.
        """
        path = self.root / relative
        media_type = MEDIA_TYPES.get(path.suffix.removeprefix("."))
        hidden = any(part.startswith(".") for part in Path(relative).parts)
        try:
            there = self._holds(path) and path.is_file()
        except (OSError, ValueError):  # a name too long, or with a NUL
            there = False
        if media_type is None or hidden or not there:
            raise NotFound("there is no such output")
        return path, media_type

    def _holds(self, path: Path) -> bool:
        """Whether a path lies below the root once its links are followed."""
        try:
            return path.resolve().is_relative_to(self.root.resolve())
        except RuntimeError:  # Python 3.11 and 3.12: a link to itself
            return False

    def _unwritable(self) -> InternalError:
        logger.exception("outputs cannot be written under %s", self.root)
        return InternalError("The output folder cannot be written; the server's log has the details.")
