"""The tables of jobs, made or brought to the latest version as a server starts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, func, inspect, select

from cache_dit_serving.jobs.store.engine import MIGRATION_WAIT_S
from cache_dit_serving.jobs.store.tables import Base

logger = logging.getLogger(__name__)

MIGRATING = 0x6361636865646974
"""Number of the lock that one of several servers has while it makes the tables."""


def migrate(engine: Engine) -> None:
    """Make the tables of a database, or bring them to the latest version.

    Those of a newer version stay as they are if this server can use them: an older one starts again in a rollout, and
    where a rollout is undone. Migrations only add.

    Raises:
        CommandError: they are of a version that this server does not know, and it cannot use them.
        SQLAlchemyError: the database does not take it.
    """
    with engine.execution_options(writes=True, wait_s=MIGRATION_WAIT_S).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(MIGRATING)))
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if unknown := set(MigrationContext.configure(connection).get_current_heads()) - known:
            if unusable := ", ".join(_unusable(connection)):
                raise CommandError(f"version {', '.join(sorted(unknown))}: {unusable}")
            logger.warning(
                "the tables of jobs are of a newer version of this server; they have all that this one needs"
            )
            return
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _unusable(connection: Connection) -> Iterator[str]:
    """Yield what keeps this server from using the tables: a part that it needs, or a value that it would not write."""
    there = inspect(connection)
    for table in Base.metadata.sorted_tables:
        if not there.has_table(table.name):
            yield f"no table {table.name}"
            continue
        columns = {column["name"]: column for column in there.get_columns(table.name)}
        for name in table.columns.keys() - columns.keys():
            yield f"no column {table.name}.{name}"
        for name in columns.keys() - table.columns.keys():
            if not columns[name]["nullable"] and columns[name]["default"] is None:
                yield f"column {table.name}.{name} needs a value"
