"""Delivery of webhooks: checked when a job is submitted, sent until their receivers have taken them."""

from __future__ import annotations

import asyncio
import logging
import time

import httpx

from cache_dit_serving.config.settings import WebhookSettings, webhook_key
from cache_dit_serving.errors import InvalidRequest, StoreUnavailable
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.store.access import Ask
from cache_dit_serving.jobs.webhooks import Sending, Webhook
from cache_dit_serving.media.outgoing import Reach, Refused, addressed, client_for, reachable

logger = logging.getLogger(__name__)

OUTBOX_POLL_S = 1.0
"""Seconds between two looks for messages that are due."""


class Webhooks:
    """Messages of the jobs of all servers that share a database, for the event loop of one of them."""

    def __init__(self, settings: WebhookSettings, ask: Ask) -> None:
        """
        Args:
            ask: has the database do something, or raises StoreUnavailable.
        """
        self._settings = settings
        self._reach = Reach(settings.hosts, settings.networks, "webhooks.hosts", "webhooks.networks")
        self._key = webhook_key(settings.secret) if settings.secret else b""
        self._ask = ask
        self._sending = Sending()
        self._ended = asyncio.Event()
        """Set when an attempt has ended."""

    def check(self, url: str | None) -> None:
        """
        Raises:
            InvalidRequest: nothing is sent to that address.
        """
        if url is None:
            return
        try:
            reachable(url, self._reach)
        except Refused as refusal:
            raise InvalidRequest(f"webhook_url {refusal}", param="webhook_url") from None
        except (httpx.InvalidURL, UnicodeError):
            raise InvalidRequest("webhook_url is no address", param="webhook_url") from None

    async def send_until(self, closing: asyncio.Event) -> None:
        """Send what is due, until the server ends."""
        if not self._settings.hosts:
            return
        async with client_for(self._settings.timeout_s) as client, asyncio.TaskGroup() as attempts:
            while not closing.is_set():
                self._ended.clear()
                taken = await self._taken()
                for webhook in taken:
                    attempts.create_task(self._attempt(client, webhook))
                if not taken or self._sending.is_full():
                    await self._look_again(closing)

    async def _taken(self) -> list[Webhook]:
        """The messages to be sent now."""
        # Another server sends them if this one dies meanwhile.
        now, until = time.time(), time.time() + 3 * self._settings.timeout_s
        try:
            return await self._ask(lambda store: store.outbox.take(now, until, self._sending))
        except StoreUnavailable:
            pass  # the log has it
        except Exception:
            logger.exception("webhooks are not sent")
        return []

    async def _look_again(self, closing: asyncio.Event) -> None:
        """Wait until there may be something to send: at the end of an attempt, or after a while."""
        waiting = [asyncio.ensure_future(event.wait()) for event in (closing, self._ended)]
        await asyncio.wait(waiting, timeout=OUTBOX_POLL_S, return_when=asyncio.FIRST_COMPLETED)
        for each in waiting:
            each.cancel()

    async def _attempt(self, client: httpx.AsyncClient, webhook: Webhook) -> None:
        try:
            await self._send(client, webhook)
        except StoreUnavailable:
            pass  # the log has it; the message is sent again
        except Exception:
            logger.exception("a webhook of %s is not sent", webhook.job)
        finally:
            self._sending.end(webhook)
            self._ended.set()

    async def _send(self, client: httpx.AsyncClient, webhook: Webhook) -> None:
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                said = await self._answer(client, webhook)
        except TimeoutError:
            said = f"no answer within {self._settings.timeout_s:g} s"
        except Refused as refusal:
            said = f"its address {refusal}"
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            said = type(error).__name__
        if said is None:
            metrics.WEBHOOKS.labels("delivered").inc()
            await self._ask(lambda store: store.outbox.done(webhook.id))
            return
        again_s = webhook.again_s()
        if again_s is None:
            logger.error("webhook of %s is given up after %d attempts: %s", webhook.job, webhook.attempts, said)
            metrics.WEBHOOKS.labels("given_up").inc()
            await self._ask(lambda store: store.outbox.done(webhook.id))
            return
        logger.warning("webhook of %s is sent again in %.0f s: %s", webhook.job, again_s, said)
        metrics.WEBHOOKS.labels("failed").inc()
        await self._ask(lambda store: store.outbox.again(webhook.id, time.time() + again_s))

    async def _answer(self, client: httpx.AsyncClient, webhook: Webhook) -> str | None:
        """Make one attempt; return the failure in words, None where the receiver took it."""
        target = reachable(webhook.url, self._reach)
        headers = webhook.headers(self._key, int(time.time()))
        request = await addressed(client, "POST", target, self._reach, headers=headers, content=webhook.body)
        response = await client.send(request, stream=True)  # what it says is not read
        await response.aclose()
        return None if response.is_success else f"answered {response.status_code}"
