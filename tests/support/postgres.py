"""A real PostgreSQL of one's own, where its programs are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.support.server import free_port

BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
INSTALLED = BIN is not None
needs_postgres = pytest.mark.skipif(not INSTALLED, reason="PostgreSQL is not installed (Debian: postgresql)")
USER = "postgres" if os.geteuid() == 0 else None
"""It does not run as root."""
WITH_PASSWORD = "with_password"
"""The one name of a user that is asked for a password."""


@dataclass
class Postgres:
    """A cluster of databases on a port of 127.0.0.1."""

    folder: Path
    port: int

    def new_database(self) -> str:
        """The URL of an empty one."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement: str) -> None:
        """Run a statement of an administrator."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off -c shared_buffers=16MB"
        self._run("pg_ctl", "start", "-w", "-t", "60", "-o", options, "-l", str(self.folder / "log"))

    def stop(self) -> None:
        """At once: whoever is connected is cut off."""
        self._run("pg_ctl", "stop", "-m", "immediate")

    def url(self, database: str, user: str = "postgres") -> str:
        """The URL of a database for a user, who needs a password if it is :data:`WITH_PASSWORD`."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str((BIN or Path()) / program), "-D", str(self.folder / "data"), *arguments]
        # Not through a pipe: the server keeps the output of its starter open.
        with (self.folder / "output").open("wb") as output:
            done = subprocess.run(
                command, user=USER, cwd=self.folder, stdout=output, stderr=output, timeout=90, check=False
            )
        assert done.returncode == 0, (self.folder / "output").read_text()


@contextmanager
def postgres() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # tmp_path is closed to other users
    if USER:
        shutil.chown(folder, USER)
    cluster = Postgres(folder, free_port())
    try:
        cluster._run("initdb", "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
        admitted = folder / "data" / "pg_hba.conf"
        admitted.write_text(f"host all {WITH_PASSWORD} 127.0.0.1/32 scram-sha-256\n{admitted.read_text()}")
        cluster.start()
        yield cluster
        cluster.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
