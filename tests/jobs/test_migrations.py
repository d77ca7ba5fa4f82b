"""Migrations: each one only adds, since old and new servers share the tables in a rollout, and keeps what is there."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Boolean, MetaData, Table, create_engine, insert, inspect, make_url

from cache_dit_serving.jobs.store import migration
from cache_dit_serving.jobs.store.leases import Silent
from cache_dit_serving.jobs.store.store import JobStore
from tests.support.jobs import QUEUED, RUNNING, record

FOLDER = Path(migration.__file__).parent / "migrations"
SCRIPTS = ScriptDirectory(str(FOLDER))
REVISIONS = sorted(script.revision for script in SCRIPTS.walk_revisions())
ADDS = (
    r"CREATE TABLE ",
    r"CREATE INDEX ",
    r"DROP INDEX ",  # of what is found, nothing changes but the time
    r"ALTER TABLE \w+ ADD COLUMN (.* DEFAULT .*|(?!.* NOT NULL$).*)$",  # rows of older servers do without a value
)
GIVEN = {"history": json.dumps([["queued", 1000.0]]), "request": record().request, "files": "[]", "state": "queued"}
"""Columns of a job that is read as JSON, or by a name."""


def statements(revision: str, dialect: str) -> list[str]:
    """The SQL of a migration."""
    text = io.StringIO()
    context = MigrationContext.configure(dialect_name=dialect, opts={"as_sql": True, "output_buffer": text})
    with Operations.context(context):
        SCRIPTS.get_revision(revision).module.upgrade()
    return [" ".join(each.split()) for each in text.getvalue().split(";") if each.strip()]


def migrate(url: str, revision: str) -> None:
    """Bring the tables to a revision."""
    engine = create_engine(url)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(FOLDER))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


def columns_of_a_job(url: str) -> list[Any]:
    """Those of the table as it is now, which a server of its version writes."""
    engine = create_engine(url)
    columns = inspect(engine).get_columns("jobs")
    engine.dispose()
    return columns


def add_job(url: str, name: str, columns: list[Any]) -> None:
    """Add a job as a server does that knows these columns: all that need a value have one."""
    values = {"id": name, "steps": 10, "owner": "older"} | GIVEN
    for column in columns:
        if column["name"] == "number" or column["nullable"] or column["default"] is not None:
            continue
        number = False if isinstance(column["type"], Boolean) else 0
        values.setdefault(column["name"], number if column["type"].python_type in (int, float, bool) else "")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(insert(Table("jobs", MetaData(), autoload_with=connection)).values(values))
    engine.dispose()


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
@pytest.mark.parametrize("revision", REVISIONS)
def test_a_migration_only_adds(revision: str, dialect: str) -> None:
    for statement in statements(revision, dialect):
        assert any(re.match(allowed, statement) for allowed in ADDS), statement


def test_jobs_of_older_servers_are_kept_and_those_go_on_beside_newer_ones(url: str) -> None:
    if url.startswith("sqlite"):
        Path(str(make_url(url).database)).parent.mkdir(parents=True)
    known = {}
    for revision in REVISIONS:
        migrate(url, revision)
        known[revision] = columns_of_a_job(url)
        add_job(url, f"before{revision}", known[revision])
    store = JobStore(url)
    for revision, columns in known.items():
        add_job(url, f"beside{revision}", columns)
    jobs = [record(f"{when}{revision}") for when in ("before", "beside") for revision in REVISIONS]
    assert [store.get(job.id) for job in jobs] == jobs
    assert store.adopt("newer", time.time() + 60, len(jobs), Silent(settled=True)) == jobs
    for job in jobs:
        assert store.put(record(job.id, QUEUED, RUNNING), "newer")
    store.close()
