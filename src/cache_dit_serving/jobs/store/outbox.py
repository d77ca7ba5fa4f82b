"""Webhooks that are not delivered yet, in the database of jobs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from sqlalchemy import Connection, Engine, delete, insert, select, update

from cache_dit_serving.jobs.store.tables import WebhookRow
from cache_dit_serving.jobs.webhooks import Webhook


class Outbox:
    """For any thread, and any server: each message is in the hands of one at a time."""

    def __init__(self, engine: Engine) -> None:
        """
        Args:
            engine: for transactions that write.
        """
        self._engine = engine

    def add(self, connection: Connection, webhooks: Iterable[Webhook], due: float) -> None:
        """Put messages in, within the transaction of what they tell."""
        for webhook in webhooks:
            connection.execute(insert(WebhookRow).values(asdict(webhook) | {"due": due}))

    def take(self, now: float, until: float, limit: int) -> list[Webhook]:
        """Take messages that are due, for one attempt each.

        Args:
            now: seconds since the epoch.
            until: when they are due again, unless :meth:`done` or :meth:`again` says otherwise.
        """
        taken = []
        with self._engine.begin() as connection:
            due = select(WebhookRow).where(WebhookRow.due <= now).order_by(WebhookRow.due).limit(limit)
            for row in connection.execute(due).all():
                mine = update(WebhookRow).where(WebhookRow.id == row.id, WebhookRow.due == row.due)
                attempts = row.attempts + 1
                if connection.execute(mine.values(due=until, attempts=attempts)).rowcount:
                    taken.append(Webhook(row.id, row.job, row.url, row.body, attempts))
        return taken

    def done(self, webhook: str) -> None:
        """Forget a message: it is delivered, or given up."""
        with self._engine.begin() as connection:
            connection.execute(delete(WebhookRow).where(WebhookRow.id == webhook))

    def again(self, webhook: str, due: float) -> None:
        """Let a message be due at a time, seconds since the epoch."""
        with self._engine.begin() as connection:
            connection.execute(update(WebhookRow).where(WebhookRow.id == webhook).values(due=due))
