"""Outputs in object storage such as S3. Several machines can share it; clients download by signed URLs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

import obstore
from obstore.exceptions import BaseError

from cache_dit_serving.config.object_store import object_store, summary
from cache_dit_serving.config.settings import OutputSettings
from cache_dit_serving.errors import InternalError, InvalidRequest, NotFound
from cache_dit_serving.media.kinds import MEDIA_TYPES
from cache_dit_serving.media.outputs import NAME, NONE, File, Form, Listed, Stored, media_type_of, new_name

logger = logging.getLogger(__name__)


class ObjectOutputs:
    """Output store below one prefix of a bucket; implements :class:`media.outputs.Outputs`."""

    expiring = True

    def __init__(self, settings: OutputSettings) -> None:
        assert settings.store is not None
        self._url = settings.store
        self._store = object_store(settings.store, settings.store_options)
        self._valid = timedelta(seconds=settings.sign_s)

    def check(self, folder: str | None, form: Form) -> None:
        # The storage itself is not probed: that costs a round trip, and its state may change before the write.
        if form == "path":
            raise InvalidRequest("outputs lie in object storage here; ask for url or base64", param="output_format")

    def save_all(self, files: Sequence[File], folder: str | None) -> list[str]:
        names: list[str] = []
        try:
            for content, extension in files:
                # Listed before the write, because a write that seems to have failed may have succeeded.
                names.append(f"{folder}/{new_name(extension)}" if folder else new_name(extension))
                with self._failing():
                    attributes = {"Content-Type": MEDIA_TYPES[extension]}
                    obstore.put(self._store, names[-1], content, attributes=attributes)
        except BaseException:
            with contextlib.suppress(InternalError):
                self._delete(names)
            raise
        return names

    def address(self, name: str, form: Form, base_url: str) -> str:
        with self._failing():
            return obstore.sign(self._store, "GET", name, self._valid)

    def is_signed(self, name: str, query: Mapping[str, str]) -> bool:
        return False  # addresses lead to the storage

    def find(self, name: str) -> Stored:
        media_type = media_type_of(name)
        with self._failing():
            try:
                obstore.head(self._store, name)
            except (FileNotFoundError, ValueError):  # ValueError: it cannot be an object's name
                raise NotFound(NONE) from None
        return Stored(self.address(name, "url", ""), media_type)

    def delete(self, names: Sequence[str], folder: str) -> None:
        self._delete(names)  # a folder is only a prefix of object names

    def clear(self, folder: str) -> None:
        with self._failing():
            names = [found["path"] for found in obstore.list(self._store, folder).collect()]
        self._delete(names)

    def listed(self) -> list[Listed]:
        with self._failing():
            return [
                Listed(found["path"], found["size"], found["last_modified"].timestamp())
                for found in obstore.list(self._store).collect()
                if NAME.fullmatch(found["path"].rpartition("/")[2])
            ]

    def tidy(self, before: float) -> None:
        pass  # an object is never half-written

    def _delete(self, names: Sequence[str]) -> None:
        for name in names:
            with self._failing(), contextlib.suppress(FileNotFoundError):
                obstore.delete(self._store, name)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Context that logs a storage error and replaces it by one without names of the storage.

        Raises:
            InternalError: the storage failed.
        """
        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            logger.error("the storage of outputs, %s, does not answer: %s", self._url, summary(error))
            raise InternalError("The outputs' storage does not answer; the server's log has the details.") from error
