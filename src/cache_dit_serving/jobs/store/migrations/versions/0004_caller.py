"""The sender of a job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("caller", sa.Text, nullable=False, server_default=""))
    op.create_index("ix_jobs_caller", "jobs", ["caller"])


def downgrade() -> None:
    op.drop_index("ix_jobs_caller", "jobs")
    op.drop_column("jobs", "caller")
