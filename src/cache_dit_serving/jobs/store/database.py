"""The database of jobs, and this server in it."""

from __future__ import annotations

import secrets

from cache_dit_serving.config.settings import Settings
from cache_dit_serving.jobs.store.access import StoreAccess
from cache_dit_serving.jobs.store.heart import Heart

FILE = "jobs.sqlite3"
"""Name of the database's file in the local folder, wherever the outputs lie."""


class JobDatabase:
    """A database of jobs that is not open yet, and one server's name and beat in it."""

    def __init__(self, url: str, lease_s: float) -> None:
        """
        Args:
            url: as SQLAlchemy takes it.
            lease_s: seconds of silence after which a server counts as dead.
        """
        self.access = StoreAccess(url)
        self.lease_s = lease_s
        self.server = secrets.token_hex(8)
        """Name of this server."""
        self.heart = Heart(self.server, lease_s, lambda: self.access.store)

    @classmethod
    def of(cls, settings: Settings) -> JobDatabase:
        """Make the one that the settings name, by default a file in the folder of outputs."""
        root = settings.outputs.root.expanduser().absolute()
        return cls(settings.jobs.database or f"sqlite:///{root / FILE}", settings.jobs.lease_s)
