"""Runs migrations on the connection that the store gives; there is no other way to run them."""

from __future__ import annotations

from alembic import context

from cache_dit_serving.jobs.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, transactional_ddl=True
)
with context.begin_transaction():
    context.run_migrations()
