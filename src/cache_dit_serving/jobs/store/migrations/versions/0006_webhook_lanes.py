"""The host and the caller of a webhook, by which messages share the sender."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    for name in ("host", "caller"):
        op.add_column("webhooks", sa.Column(name, sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    for name in ("host", "caller"):
        op.drop_column("webhooks", name)
