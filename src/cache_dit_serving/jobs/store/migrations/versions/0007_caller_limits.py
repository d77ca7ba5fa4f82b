"""The limits of callers over all servers: their rates, and the places of their live generations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "caller_rates",
        sa.Column("caller", sa.Text, primary_key=True),
        sa.Column("due", sa.Double, nullable=False),
    )
    op.create_table(
        "live_places",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("server", sa.Text, nullable=False),
    )
    for column in ("caller", "server"):
        op.create_index(f"ix_live_places_{column}", "live_places", [column])


def downgrade() -> None:
    op.drop_table("live_places")
    op.drop_table("caller_rates")
