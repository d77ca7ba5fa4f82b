"""Faults of a database as it is opened: those of the configuration, each with its remedy, and those that may pass."""

from __future__ import annotations

import errno
import re

from alembic.util import CommandError
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from cache_dit_serving.errors import LoadError
from cache_dit_serving.jobs.store.exchanged import summary

WRITTEN = "write it as postgresql://user:password@host/name, or sqlite:////folder/jobs.sqlite3"
DATABASES = ("sqlite", "postgresql")
UTF8 = "UTF8"
UTF8_REMEDY = "make one by CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0"
FILE_REMEDY = "name a file in a folder that this server's user may write to"
OTHER_VERSION = "its tables are of another version of this server; start that one, or name another database"
OF_THE_PATH = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOENT,
    errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
"""Errors of the system that another path mends, rather than time."""
REMEDIES = {
    r"authentication failed for user|no password supplied": "write a user and password that it knows into the URL",
    r'database ".*" does not exist': UTF8_REMEDY.replace("make one", "make it"),
    r'role ".*" does not exist|not permitted to log in': "write a user into the URL that may log in",
    r"no pg_hba\.conf entry": "have pg_hba.conf admit this user, database and address",
    r"SSL was required|certificate (verify failed|file)": "write an sslmode and certificates that fit it into the URL",
    r"invalid (port|connection option|\w+ value)": "correct the URL",
    r"permission denied for": "GRANT CREATE ON SCHEMA public TO its user, or make that user the owner of the database",
    r"file is not a database|unable to open database file|readonly database": FILE_REMEDY,
}
"""Remedy by the text of a fault: psycopg 3.3 has no SQLSTATE of a connection that fails. The text is PostgreSQL's. In
another language than English such a fault counts as one that may pass."""


class UnusableDatabase(LoadError):
    """The database cannot be used as it is configured, however long the server waits. The message has the remedy."""


def parsed(url: str) -> URL:
    """Return the parts of a URL.

    Raises:
        UnusableDatabase: it is none, or of a database that is not supported. The message holds nothing of it.
    """
    try:
        parts = make_url(url)
    except ArgumentError as error:
        raise _unusable("it is no URL", WRITTEN) from error
    except ValueError as error:
        raise _unusable("the port of its URL is no number", WRITTEN) from error
    if parts.get_backend_name() not in DATABASES:
        raise _unusable(f"{parts.get_backend_name()} is not supported", WRITTEN)
    if parts.get_backend_name() == "sqlite" and parts.database in (None, "", ":memory:"):
        raise _unusable("a database in memory ends with the server", FILE_REMEDY)
    if "@" in (parts.host or ""):
        raise _unusable("its URL has @ twice", "write an @ of the password as %40")
    return parts


def check_encoding(encoding: str | None) -> None:
    """Refuse the encoding of a PostgreSQL database that cannot hold every prompt.

    psycopg 3.3 gives the texts of a database in SQL_ASCII as bytes, at which SQLAlchemy 2.1 fails with a TypeError.
    LATIN1 has no letter for many prompts: such a database would fail one request at a time.

    Raises:
        UnusableDatabase: it is not UTF-8.
    """
    if encoding != UTF8:
        raise _unusable(f"the encoding of the database is {encoding}, not {UTF8}", UTF8_REMEDY)


def fault_of(error: Exception) -> LoadError:
    """Return the error of a database that does not open: :class:`UnusableDatabase` where waiting does not mend it.

    Args:
        error: of SQLAlchemy, alembic, the system or an import.
    """
    text = summary(error)
    if isinstance(error, CommandError):
        return UnusableDatabase(f"jobs.database cannot be opened: {OTHER_VERSION} ({text})")
    if isinstance(error, ArgumentError):
        return _unusable(text, WRITTEN)
    if isinstance(error, ImportError):
        return _unusable(text, "install that driver, or write postgresql://, whose driver is here")
    if isinstance(error, OSError) and error.errno in OF_THE_PATH:
        return _unusable(text, FILE_REMEDY)
    for pattern, remedy in REMEDIES.items():
        if re.search(pattern, text):
            return _unusable(text, remedy)
    return LoadError(f"jobs.database cannot be opened: {text}")


def _unusable(reason: str, remedy: str) -> UnusableDatabase:
    return UnusableDatabase(f"jobs.database cannot be opened: {reason}; {remedy}")
