"""Output store: its interface, and its implementation as files in a folder."""

from __future__ import annotations

import contextlib
import errno
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
from cache_dit_serving.media.kinds import MEDIA_TYPES
from cache_dit_serving.media.signing import Signer
from cache_dit_serving.private import FILE_MODE, READABLE, Readers, make_folder

logger = logging.getLogger(__name__)

OUTPUTS_ROUTE = "/outputs"
"""Route that serves outputs by name."""
File = tuple[bytes, str]
"""Content and file extension."""
Form = Literal["path", "url"]
NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{24}\.[a-z0-9]+")
"""Pattern of an output's file name; see :func:`new_name`."""
PARTIAL = ".partial-"
"""Prefix of the name of a file that is being written."""
NONE = "there is no such output"


class Stored(NamedTuple):
    """Location and media type of a stored output."""

    place: Path | str
    """Path of its file on this machine, or a URL to redirect to."""
    media_type: str


class Listed(NamedTuple):
    """Entry of an output in the list of all outputs."""

    name: str
    bytes: int
    modified: float
    """Time of the last change, seconds since the epoch."""


class Outputs(Protocol):
    """Store of outputs. An output's name is its path below one root.

    All methods but `check` may block and must not be called on the event loop.
    """

    @property
    def expiring(self) -> bool:
        """True if URLs of outputs expire."""

    def check(self, folder: str | None, form: Form) -> None:
        """Check, before anything is generated, that outputs can be written.

        Args:
            folder: folder below the root; None: the root.

        Raises:
            InvalidRequest: the folder or the form is not allowed.
            InternalError: the store is not writable.
        """

    def save_all(self, files: Sequence[File], folder: str | None) -> list[str]:
        """Write files under new names and return the names. If one write fails, none of the files stays.

        Raises:
            ServingError: as :meth:`check`.
        """

    def address(self, name: str, form: Form, base_url: str) -> str:
        """Return an output's path on this machine, or its URL.

        Raises:
            InternalError: the store failed.
        """

    def is_signed(self, name: str, query: Mapping[str, str]) -> bool:
        """Return whether a URL query came from :meth:`address` and has not expired.

        Raises:
            InternalError: the store failed.
        """

    def find(self, name: str) -> Stored:
        """Return the output of a name.

        Raises:
            NotFound: no such output exists.
            InternalError: the store failed.
        """

    def delete(self, names: Sequence[str], folder: str) -> None:
        """Delete outputs, then their folder if it is empty. Missing outputs are no error.

        Args:
            folder: folder of the outputs; empty: none to delete.

        Raises:
            InternalError: one cannot be deleted.
        """

    def clear(self, folder: str) -> None:
        """Delete every output in a folder.

        Raises:
            InternalError: one cannot be deleted.
        """

    def listed(self) -> list[Listed]:
        """Return all outputs. Other files below the root are left out.

        Raises:
            InternalError: the store failed.
        """

    def tidy(self, before: float) -> None:
        """Delete half-written files older than `before`, seconds since the epoch.

        Raises:
            InternalError: one cannot be deleted.
        """


class OutputFolder:
    """Output store as files under one root. Links that lead out of the root are not followed.

    A file is written under a temporary name and renamed, so that it appears whole.
    """

    def __init__(self, root: Path, sign_s: int | None = None, readers: Readers = "user") -> None:
        """
        Args:
            sign_s: lifetime of a signed URL, seconds; None: URLs have no signature and do not expire.
            readers: users of the machine that may read the files.
        """
        self._readers = readers
        self.root = root.expanduser().absolute()
        self._signer = None if sign_s is None else Signer(self.root, sign_s)

    @property
    def expiring(self) -> bool:
        return self._signer is not None

    def folder(self, name: str | None) -> Path:
        """Return a folder below the root, or the root for None. A missing folder is made.

        Raises:
            InvalidRequest: the folder leads out of the root by a link, or is a file.
            InternalError: the folder is not writable.
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
        """Write a file under a new name into a folder that :meth:`folder` returned.

        Returns:
            Path of the file.

        Raises:
            InternalError: the file cannot be written.
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
            with contextlib.suppress(OSError):  # missing, or another server writes to it
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
        """Yield the files below the root, without links and hidden folders."""
        for folder, folders, names in os.walk(self.root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = Path(folder, name)
                if not path.is_symlink():
                    yield path

    def _holds(self, path: Path) -> bool:
        """Return whether a path lies below the root after its links are resolved."""
        try:
            path.stat()
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link to itself, which Python 3.13 takes for resolved
                return False
        return path.resolve().is_relative_to(self.root.resolve())

    def _unwritable(self) -> InternalError:
        logger.exception("outputs cannot be written under %s", self.root)
        return InternalError("The output folder cannot be written; the server's log has the details.")


def new_name(extension: str) -> str:
    """Return a new file name: UTC time, 96 random bits and the extension.

    A name that a caller can choose or guess would give access to other callers' outputs.
    """
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(12)}.{extension}"


def media_type_of(name: str) -> str:
    """Return the media type for an output's name.

    Raises:
        NotFound: the extension is unknown, or a part of the path is hidden.
    """
    path = PurePosixPath(name)
    media_type = MEDIA_TYPES.get(path.suffix.removeprefix("."))
    if media_type is None or any(part.startswith(".") for part in path.parts):
        raise NotFound(NONE)
    return media_type
