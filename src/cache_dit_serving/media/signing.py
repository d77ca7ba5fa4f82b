"""Signed URLs of outputs, which cannot be forged and expire."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from cache_dit_serving.private import FILE_MODE, make_folder

logger = logging.getLogger(__name__)

KEY_FILE = ".signing-key"
KEY_BYTES = 32


class Signer:
    """Signer of output names (HMAC-SHA256). The key lies in the output folder, so all its servers share it."""

    def __init__(self, root: Path, valid_s: int) -> None:
        self._root = root
        self._valid_s = valid_s
        self._read: bytes | None = None

    def query(self, name: str) -> str:
        """Return the signed query string of an output's URL, without the `?`.

        Raises:
            OSError: the key can neither be read nor written.
        """
        expires = int(time.time()) + self._valid_s
        return f"expires={expires}&signature={self._signature(name, expires)}"

    def holds(self, name: str, query: Mapping[str, str]) -> bool:
        """Return whether a query was signed for this output and has not expired.

        Raises:
            OSError: as :meth:`query`.
        """
        expires, signature = query.get("expires", ""), query.get("signature", "")
        if not (expires.isascii() and expires.isdecimal() and len(expires) < 15) or int(expires) < time.time():
            return False
        return hmac.compare_digest(signature.encode(), self._signature(name, int(expires)).encode())

    def _signature(self, name: str, expires: int) -> str:
        return hmac.new(self._key(), f"{expires} {name}".encode(), hashlib.sha256).hexdigest()

    def _key(self) -> bytes:
        if self._read is None:
            file = self._root / KEY_FILE
            if not file.exists():
                self._make(file)
            self._read = file.read_bytes()
        return self._read

    def _make(self, file: Path) -> None:
        """Write a new key to a temporary file and link it in place, so that no other server reads half a key.

        A key that another server has made first is kept.
        """
        make_folder(self._root)
        own = file.with_name(f"{KEY_FILE}-{secrets.token_hex(8)}")
        descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        try:
            with os.fdopen(descriptor, "wb") as writing:
                writing.write(secrets.token_bytes(KEY_BYTES))
            try:
                os.link(own, file)
            except FileExistsError:
                logger.info("another server has made the key of output URLs")
        finally:
            own.unlink()
