"""Webhooks that are not delivered yet, in the database of jobs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from sqlalchemy import Connection, Engine, delete, func, insert, or_, select, update
from sqlalchemy.orm import aliased

from cache_dit_serving.jobs.store.tables import WebhookRow
from cache_dit_serving.jobs.webhooks import MOST_OF_HOST, Sending, Webhook

LOOKED_AT = 1_000
"""Due messages among which the next ones are chosen."""


class Outbox:
    """Messages that wait for an attempt. Any thread of any server may take one; each has one sender at a time."""

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

    def put(self, webhooks: Sequence[Webhook], due: float) -> None:
        """Put messages in that tell of no job."""
        with self._engine.begin() as connection:
            self.add(connection, webhooks, due)

    def take(self, now: float, until: float, sending: Sending) -> list[Webhook]:
        """Take the messages that are due and have room among those on their way, for one attempt each.

        Args:
            now: seconds since the epoch.
            until: when they are due again, unless :meth:`done` or :meth:`again` says otherwise.
            sending: those on their way; the messages taken are counted in.
        """
        full = (WebhookRow.host.in_(sending.full_hosts()), WebhookRow.caller.in_(sending.full_callers()))
        first = select(WebhookRow).where(WebhookRow.due <= now, ~or_(*full)).order_by(WebhookRow.due).limit(LOOKED_AT)
        row = aliased(WebhookRow, first.subquery())
        turn = func.row_number().over(partition_by=row.host, order_by=row.due).label("turn")
        turns = select(row.id, turn).subquery()
        due = select(row).join(turns, turns.c.id == row.id).where(turns.c.turn <= MOST_OF_HOST).order_by(row.due)
        taken = []
        with self._engine.begin() as connection:
            for found in connection.execute(due).all():
                webhook = Webhook(
                    found.id, found.job, found.url, found.body, found.attempts + 1, found.host, found.caller
                )
                if not sending.begin(webhook):
                    continue
                mine = update(WebhookRow).where(WebhookRow.id == found.id, WebhookRow.due == found.due)
                if connection.execute(mine.values(due=until, attempts=webhook.attempts)).rowcount:
                    taken.append(webhook)
                else:
                    sending.end(webhook)  # another server has it
        return taken

    def done(self, webhook: str) -> None:
        """Forget a message: it is delivered, or given up."""
        with self._engine.begin() as connection:
            connection.execute(delete(WebhookRow).where(WebhookRow.id == webhook))

    def again(self, webhook: str, due: float) -> None:
        """Let a message be due at a time, seconds since the epoch."""
        with self._engine.begin() as connection:
            connection.execute(update(WebhookRow).where(WebhookRow.id == webhook).values(due=due))
