"""The one folder that holds outputs: names chosen by the server, files that appear whole or not at all."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from cache_dit_serving.errors import InternalError, InvalidRequest, NotFound

logger = logging.getLogger(__name__)

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


class OutputFolder:
    """Files under one root; nothing is read or written outside it, links included."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()

    def save(self, content: bytes, *, name: str, folder: str | None) -> Path:
        """Write a file under `folder` (relative to the root); returns its path.

        Raises:
            InvalidRequest: the folder leads out of the root, by a link or otherwise.
            InternalError: it cannot be written.
        """
        directory = self.root / (folder or "")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._check_inside(directory)
            directory.mkdir(parents=True, exist_ok=True)
            descriptor, partial = tempfile.mkstemp(dir=directory, prefix=".partial-")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                # mkstemp's 0600 would keep the file from a client of another user on this machine.
                os.chmod(partial, 0o644)
                os.replace(partial, directory / name)
            except BaseException:
                os.unlink(partial)
                raise
        except (FileExistsError, NotADirectoryError) as error:
            raise InvalidRequest("output_dir names a file, not a folder", param="output_dir") from error
        except OSError as error:
            logger.exception("output could not be written under %s", self.root)
            raise InternalError("The output could not be written; the server's log has the details.") from error
        return directory / name

    def find(self, relative: str) -> tuple[Path, str]:
        """An output's file and media type, by its path below the root.

        Raises:
            NotFound: there is none, or the path leads out of the root.
        """
        if "\0" in relative:
            raise NotFound("there is no such output")
        path = self.root / relative
        media_type = MEDIA_TYPES.get(path.suffix.removeprefix("."))
        hidden = any(part.startswith(".") for part in Path(relative).parts)
        if media_type is None or hidden or not path.resolve().is_relative_to(self.root.resolve()) or not path.is_file():
            raise NotFound("there is no such output")
        return path, media_type

    def _check_inside(self, directory: Path) -> None:
        if not directory.resolve().is_relative_to(self.root.resolve()):
            raise InvalidRequest("output_dir leads out of the server's output folder", param="output_dir")
