"""Outputs as files: names chosen by the server, files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, Protocol

from cache_dit_serving.errors import InternalError, InvalidRequest, NotFound
from cache_dit_serving.media.formats import MEDIA_TYPES
from cache_dit_serving.media.signing import Signer
from cache_dit_serving.private import FILE_MODE, READABLE, Readers, make_folder

logger = logging.getLogger(__name__)

OUTPUTS_ROUTE = "/outputs"
"""Where outputs are served by their names."""
File = tuple[bytes, str]
"""Content and file extension."""
Form = Literal["path", "url"]
NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{24}\.[a-z0-9]+")
"""Of an output: see :func:`new_name`."""
PARTIAL = ".partial-"
"""Begins the name of a file that is being written."""
NONE = "there is no such output"


class Stored(NamedTuple):
    """An output that can be fetched."""

    place: Path | str
    """Its file on this machine, or a URL that leads to it."""
    media_type: str


class Listed(NamedTuple):
    """An output as a list of all has it."""

    name: str
    bytes: int
    modified: float
    """Seconds since the epoch."""


class Outputs(Protocol):
    """Where outputs lie, each under a name: its path below one root.

    All methods but `check` take time: they are not for the event loop.
    """

    @property
    def expiring(self) -> bool:
        """Whether the URLs of outputs are valid for a while only."""

    def check(self, folder: str | None, form: Form) -> None:
        """Find out before the work is done whether outputs can be written.

        Args:
            folder: below the root; None is the root.

        Raises:
            InvalidRequest: not into this folder, or not in this form.
            InternalError: they cannot be written.
        """

    def save_all(self, files: Sequence[File], folder: str | None) -> list[str]:
        """Write files under new names: all of them, or none where one cannot be written. Returns the names.

        Raises:
            ServingError: as :meth:`check`.
        """

    def address(self, name: str, form: Form, base_url: str) -> str:
        """An output's path on this machine, or a URL.

        Raises:
            InternalError: it cannot be told.
        """

    def is_signed(self, name: str, query: Mapping[str, str]) -> bool:
        """Whether an address with this query is one of :meth:`address`, and still valid.

        Raises:
            InternalError: it cannot be told.
        """

    def find(self, name: str) -> Stored:
        """An output, to be sent to whoever asks for its name.

        Raises:
            NotFound: there is none.
            InternalError: it cannot be told.
        """

    def delete(self, names: Sequence[str], folder: str) -> None:
        """Delete outputs that may be gone already, and a folder if it is empty then.

        Raises:
            InternalError: one cannot be deleted.
        """

    def clear(self, folder: str) -> None:
        """Delete every output in a folder.

        Raises:
            InternalError: one cannot be deleted.
        """

    def listed(self) -> list[Listed]:
        """All outputs; none of the other files that lie beside them.

        Raises:
            InternalError: they cannot be told.
        """

    def tidy(self, before: float) -> None:
        """Delete what was left half-written before a time, seconds since the epoch.

        Raises:
            InternalError: it cannot be deleted.
        """


class OutputFolder:
    """Files under one root; nothing is read or written outside it, links included."""

    def __init__(self, root: Path, sign_s: int | None = None, readers: Readers = "user") -> None:
        """
        Args:
            sign_s: for how long a URL is valid; None: as long as its file is there, and without a signature.
            readers: users of the machine who may read the files.
        """
        self._readers = readers
        self.root = root.expanduser().absolute()
        self._signer = None if sign_s is None else Signer(self.root, sign_s)

    @property
    def expiring(self) -> bool:
        return self._signer is not None

    def folder(self, name: str | None) -> Path:
        """The folder of that name below the root, made if it is not there; None is the root.

        Raises:
            InvalidRequest: it leads out of the root by a link, or is a file.
            InternalError: it cannot be written.
        """
        directory = self.root / (name or "")
        try:
            make_folder(self.root, self._readers)
            if not self._holds(directory):
                raise InvalidRequest("output_dir leads out of the server's output folder", param="output_dir")
            if any(part.is_file() for part in (directory, *directory.parents)):
                raise InvalidRequest("output_dir names a file, not a folder", param="output_dir")
            make_folder(directory, self._readers)
            if not os.access(directory, os.W_OK):
                raise PermissionError(f"{directory} is not writable")
        except OSError as error:
            raise self._unwritable() from error
        return directory

    def check(self, folder: str | None, form: Form) -> None:
        self.folder(folder)

    def save_all(self, files: Sequence[File], folder: str | None) -> list[str]:
        directory = self.folder(folder)
        paths: list[Path] = []
        try:
            for content, extension in files:
                paths.append(self.save(content, directory, extension=extension))
        except BaseException:
            for path in paths:
                path.unlink(missing_ok=True)
            raise
        return [path.relative_to(self.root).as_posix() for path in paths]

    def save(self, content: bytes, folder: Path, *, extension: str) -> Path:
        """Write a file of a new name into a folder from :meth:`folder`.

        Returns:
            Its path.

        Raises:
            InternalError: it cannot be written.
        """
        name = new_name(extension)
        try:
            descriptor, partial = tempfile.mkstemp(dir=folder, prefix=PARTIAL)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    os.fchmod(descriptor, FILE_MODE | READABLE[self._readers])
                os.replace(partial, folder / name)
            except BaseException:
                os.unlink(partial)
                raise
        except OSError as error:
            raise self._unwritable() from error
        return folder / name

    def address(self, name: str, form: Form, base_url: str) -> str:
        if form == "path":
            return str(self.root / name)
        url = f"{base_url}{OUTPUTS_ROUTE}/{name}"
        try:
            return url if self._signer is None else f"{url}?{self._signer.query(name)}"
        except OSError as error:
            raise self._unwritable() from error

    def is_signed(self, name: str, query: Mapping[str, str]) -> bool:
        try:
            return self._signer is None or self._signer.holds(name, query)
        except OSError as error:
            raise self._unwritable() from error

    def find(self, name: str) -> Stored:
        path, media_type = self.root / name, media_type_of(name)
        try:
            there = self._holds(path) and path.is_file()
        except (OSError, ValueError):  # a name too long, or with a NUL
            there = False
        if not there:
            raise NotFound(NONE)
        return Stored(path, media_type)

    def delete(self, names: Sequence[str], folder: str) -> None:
        try:
            for name in names:
                (self.root / name).unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable() from error
        if folder:
            with contextlib.suppress(OSError):  # it is not there, or another server fills it
                (self.root / folder).rmdir()

    def clear(self, folder: str) -> None:
        try:
            for file in (self.root / folder).glob("*"):
                file.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable() from error

    def listed(self) -> list[Listed]:
        found = []
        for path in self._files():
            if NAME.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    status = path.stat()
                    name = path.relative_to(self.root).as_posix()
                    found.append(Listed(name, status.st_size, status.st_mtime))
        return found

    def tidy(self, before: float) -> None:
        try:
            for path in self._files():
                if path.name.startswith(PARTIAL):
                    with contextlib.suppress(FileNotFoundError):
                        if path.stat().st_mtime < before:
                            path.unlink()
        except OSError as error:
            raise self._unwritable() from error

    def _files(self) -> Iterator[Path]:
        """Below the root, links left alone."""
        for folder, folders, names in os.walk(self.root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = Path(folder, name)
                if not path.is_symlink():
                    yield path

    def _holds(self, path: Path) -> bool:
        """Whether a path lies below the root once its links are followed."""
        try:
            return path.resolve().is_relative_to(self.root.resolve())
        except RuntimeError:  # Python 3.11 and 3.12: a link to itself
            return False

    def _unwritable(self) -> InternalError:
        logger.exception("outputs cannot be written under %s", self.root)
        return InternalError("The output folder cannot be written; the server's log has the details.")


def new_name(extension: str) -> str:
    """For an output.

    It is random: one that a caller could choose or guess would let requests reach each other's pictures.
    """
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(12)}.{extension}"


def media_type_of(name: str) -> str:
    """By an output's name.

    Raises:
        NotFound: no output has such a name.
    """
    path = PurePosixPath(name)
    media_type = MEDIA_TYPES.get(path.suffix.removeprefix("."))
    if media_type is None or any(part.startswith(".") for part in path.parts):
        raise NotFound(NONE)
    return media_type
