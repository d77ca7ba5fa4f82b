"""API keys as Bearer tokens: the sender of each request, its scope and its rate limit."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from cache_dit_serving.api.operation import Operation
from cache_dit_serving.config.keys import ApiKey, read_keys
from cache_dit_serving.config.settings import ServerSettings
from cache_dit_serving.engine.caller import ANYONE, NOBODY, Caller
from cache_dit_serving.errors import ConfigError, Forbidden, RateLimited, Unauthorized
from cache_dit_serving.jobs.shared import FULL, CallerCounts, refill
from cache_dit_serving.jobs.shared_limits import SharedLimits

logger = logging.getLogger(__name__)

KEYS_POLL_S = 1.0
"""Seconds between two looks at the file of keys."""


class Access:
    """Keys of the settings and of the file, for one worker."""

    def __init__(self, settings: ServerSettings, counts: CallerCounts | None = None) -> None:
        """
        Args:
            counts: requests of all workers; None: this worker counts its own.

        Raises:
            ConfigError: the file of keys cannot be read.
        """
        self.guarded = settings.has_keys
        """True if callers need a key."""
        self._own = settings.api_keys
        self._file = settings.api_keys_file
        self._open = settings.open_routes
        self._counts = counts
        self._shared: SharedLimits | None = None
        self._buckets: dict[str, tuple[float, float]] = {}
        """Requests left to each caller, and the time of that count, monotonic seconds."""
        self._read: tuple[ApiKey, ...] = ()
        self._version: object = None
        self._looked = time.monotonic()
        if self._file is not None:
            self._version = _version(self._file)
            self._read = read_keys(self._file)

    def share(self, limits: SharedLimits | None) -> None:
        """Count requests at all servers that share a database from now on; None: no other server does."""
        self._shared = limits

    async def admit(self, headers: Mapping[str, str], operation: Operation | None) -> Caller:
        """Return the sender of a request, which is allowed to send it.

        Args:
            operation: the request's row of the table; None: it has none, and its sender still needs a key.

        Raises:
            Unauthorized: no key, or none of this server's.
            Forbidden: a key of another scope.
            RateLimited: too many generations within a minute.
        """
        if not self.guarded:
            return ANYONE
        if operation and (operation.open_as in self._open or (operation.signed and "authorization" not in headers)):
            return NOBODY
        key = self._key(headers)
        if operation is None:
            return Caller(key.name, key.scopes, key.max_live)
        if operation.scope not in key.scopes and "admin" not in key.scopes:
            raise Forbidden(f"this key may not do that: it lacks the scope {operation.scope}")
        if operation.generates and key.requests_per_minute is not None:
            await self._take(key.name, key.requests_per_minute)
        return Caller(key.name, key.scopes, key.max_live)

    def _key(self, headers: Mapping[str, str]) -> ApiKey:
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise Unauthorized("this server wants an API key; send it as Authorization: Bearer ...")
        digest = hashlib.sha256(token.strip().encode()).hexdigest()
        found = None
        # All of them are compared, so that the time does not tell which one came near.
        for key in (*self._own, *self._of_file()):
            if hmac.compare_digest(digest, key.sha256):
                found = key
        if found is None:
            raise Unauthorized("this API key is not one of this server's", code="invalid_api_key")
        return found

    def _of_file(self) -> tuple[ApiKey, ...]:
        """Return the keys of the file as it is now; the previous ones if it cannot be read."""
        if self._file is not None and time.monotonic() - self._looked > KEYS_POLL_S:
            self._looked = time.monotonic()
            version = _version(self._file)
            if version != self._version:
                self._version = version
                try:
                    self._read = read_keys(self._file)
                    logger.info("the file of API keys was read again: %d keys", len(self._read))
                except ConfigError as error:
                    logger.error("the API keys of before hold: %s", error)
        return self._read

    async def _take(self, name: str, per_minute: float) -> None:
        wait_s = None if self._shared is None else await self._shared.take(name, per_minute)
        if not wait_s:
            # This server's own count goes on beside the shared one, for the time that the database does not answer.
            own_wait_s = self._take_here(name, per_minute)
            wait_s = own_wait_s if wait_s is None else 0.0
        if wait_s > 0:
            raise RateLimited(f"more than {per_minute:g} generations a minute of this key", retry_after_s=wait_s)

    def _take_here(self, name: str, per_minute: float) -> float:
        """Count a request at this server; return the seconds until the caller may send one, 0 where it may now."""
        now = time.monotonic()
        if self._counts is not None:
            return self._counts.take(name, per_minute, now)
        left, at = self._buckets.get(name, (FULL, now))
        left, wait_s = refill(left, now - at, per_minute)
        self._buckets[name] = left, now
        return wait_s


def _version(file: Path) -> object:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
