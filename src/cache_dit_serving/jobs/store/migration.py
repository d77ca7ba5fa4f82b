"""The tables of jobs, made or brought to the latest version as a server starts."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, func, select

from cache_dit_serving.jobs.store.engine import MIGRATION_WAIT_S

MIGRATING = 0x6361636865646974
"""Number of the lock that one of several servers has while it makes the tables."""


def migrate(engine: Engine) -> None:
    """Make the tables of a database, or bring them to the latest version.

    Raises:
        CommandError: they are of a version that this server does not know.
        SQLAlchemyError: the database does not take it.
    """
    with engine.execution_options(writes=True, wait_s=MIGRATION_WAIT_S).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(MIGRATING)))
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
