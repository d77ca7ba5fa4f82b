"""The servers that have jobs, and the order in which jobs are forgotten."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "servers",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("beats", sa.BigInteger, nullable=False),
    )
    op.drop_index("ix_jobs_ended", "jobs")
    op.create_index("ix_jobs_ended_number", "jobs", ["ended", "number"])


def downgrade() -> None:
    op.drop_index("ix_jobs_ended_number", "jobs")
    op.create_index("ix_jobs_ended", "jobs", ["ended"])
    op.drop_table("servers")
