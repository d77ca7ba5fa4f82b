"""Databases that cannot be opened: by the configuration, which is refused with the remedy, or for a while."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cache_dit_serving import preflight
from cache_dit_serving.config.settings import JobsSettings, Settings
from cache_dit_serving.errors import ConfigError, LoadError
from cache_dit_serving.jobs.store.faults import UnusableDatabase
from cache_dit_serving.jobs.store.store import JobStore
from tests.support.postgres import WITH_PASSWORD, Postgres, needs_postgres
from tests.support.server import free_port

Fault = tuple[Callable[[Postgres], str], str, str]
"""A URL, the reason and the remedy."""
SECRET = "s3cret"


@pytest.fixture(scope="module")
def users(cluster: Postgres) -> Postgres:
    """The cluster with a user who may not make tables, and one who may not log in."""
    cluster.execute(f"CREATE ROLE {WITH_PASSWORD} LOGIN PASSWORD '{SECRET}'")
    cluster.execute("CREATE ROLE visitor LOGIN")
    cluster.execute("CREATE ROLE locked_out")
    for encoding in ("SQL_ASCII", "LATIN1"):
        cluster.execute(f"CREATE DATABASE in_{encoding} ENCODING '{encoding}' TEMPLATE template0")
    return cluster


FAULTS: dict[str, Fault] = {
    "bytes for text": (lambda pg: pg.url("in_sql_ascii"), "is SQL_ASCII, not UTF8", "ENCODING 'UTF8'"),
    "an encoding without most letters": (lambda pg: pg.url("in_latin1"), "is LATIN1, not UTF8", "ENCODING 'UTF8'"),
    "no database": (lambda pg: pg.url("nothing"), 'database "nothing" does not exist', "CREATE DATABASE"),
    "a wrong password": (
        lambda pg: pg.url("postgres", f"{WITH_PASSWORD}:{SECRET}-not"),
        "password authentication failed",
        "write a user and password",
    ),
    "no password": (
        lambda pg: pg.url("postgres", WITH_PASSWORD),
        "no password supplied",
        "write a user and password",
    ),
    "no user": (lambda pg: pg.url("postgres", "nobody"), 'role "nobody" does not exist', "that may log in"),
    "a user without LOGIN": (lambda pg: pg.url("postgres", "locked_out"), "not permitted to log in", "may log in"),
    "a user who may not make tables": (
        lambda pg: pg.new_database().replace("postgres@", "visitor@"),
        "permission denied for schema public",
        "GRANT CREATE ON SCHEMA public",
    ),
    "an option that is none": (lambda pg: pg.url("postgres?nothing=1"), 'option "nothing"', "correct the URL"),
    "a port that is none": (
        lambda pg: "postgresql://postgres@127.0.0.1:99999/postgres",
        "invalid port number",
        "correct the URL",
    ),
    "TLS that it does not speak": (lambda pg: pg.url("postgres?sslmode=require"), "SSL was required", "sslmode"),
}


@needs_postgres
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_configuration_ends_the_start_with_its_remedy(fault: str, users: Postgres) -> None:
    url, reason, remedy = FAULTS[fault]
    assert_refused(url(users), reason, remedy)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "it is no URL"),
        (f"postgresql://me:{SECRET}@host:port/name", "the port of its URL is no number"),
        (f"postgresql://me:a@{SECRET}@host/name", "its URL has @ twice; write an @ of the password as %40"),
        ("mysql://host/name", "mysql is not supported"),
        ("postgres://host/name", "postgres is not supported; write it as postgresql://"),
        ("postgresql+nothing://host/name", "nothing"),
        ("postgresql+asyncpg://host/name", "install that driver, or write postgresql://"),
        ("sqlite://", "in memory ends with the server"),
        ("sqlite:////proc/nothing/jobs.sqlite3", "user may write to"),
        ("sqlite:////proc", "Is a directory"),
    ],
)
def test_a_url_that_names_no_usable_database_ends_the_start(url: str, reason: str) -> None:
    assert_refused(url, reason)


def test_a_file_that_is_no_database_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database " * 500)
    assert_refused(f"sqlite:///{tmp_path}/file", "file is not a database")


@needs_postgres
def test_tables_of_a_newer_version_that_lack_a_column_end_the_start(cluster: Postgres) -> None:
    url = cluster.new_database()
    store = JobStore(url)
    with store._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        connection.exec_driver_sql("ALTER TABLE jobs DROP COLUMN priority")
    store.close()
    assert_refused(url, "start that one, or name another database")


@needs_postgres
@pytest.mark.parametrize("fault", ["nothing listens", "no such host", "read only"])
def test_a_database_that_may_come_back_is_awaited(fault: str, cluster: Postgres) -> None:
    url = {
        "nothing listens": f"postgresql://postgres@127.0.0.1:{free_port()}/postgres",
        "no such host": "postgresql://postgres@nowhere.invalid/postgres",
        "read only": f"{cluster.new_database()}?options=-cdefault_transaction_read_only%3Don",
    }[fault]
    with pytest.raises(LoadError) as failed:
        JobStore(url)
    assert not isinstance(failed.value, UnusableDatabase)
    preflight.check(named(url))


@needs_postgres
def test_a_start_makes_the_tables(cluster: Postgres) -> None:
    url = cluster.new_database()
    preflight.check(named(url))
    store = JobStore(url)
    assert store.counts() == {}
    store.close()


def named(url: str) -> Settings:
    return Settings(jobs=JobsSettings(database=url))


def assert_refused(url: str, reason: str, remedy: str = "") -> None:
    with pytest.raises(ConfigError, match=rf"^jobs\.database cannot be opened: .*{re.escape(reason)}") as refused:
        preflight.check(named(url))
    line = str(refused.value)
    assert remedy in line.partition(reason)[2]
    assert SECRET not in line
    assert "\n" not in line
