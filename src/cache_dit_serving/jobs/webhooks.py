"""Messages about the states of a job, to an address that its caller gave.

A message is signed as https://www.standardwebhooks.com has it, which most languages have a library for.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import threading
from collections import Counter
from dataclasses import dataclass
from urllib.parse import urlsplit

from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.schemas.jobs import JobState

AGAIN_S = (1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 3 * 3600.0, 6 * 3600.0, 12 * 3600.0)
"""Seconds to the next attempt after each that failed. After the last one, about a day later, a message is given up."""

MOST_AT_ONCE, MOST_OF_HOST, MOST_OF_CALLER = 32, 2, 8
"""Messages on their way from a server: all, to one host, and of one caller with a key."""


@dataclass(frozen=True)
class Webhook:
    """One message on its way."""

    id: str
    """Id, the same with each attempt: its receiver may get it twice."""
    job: str
    """Name in the log: the id of its job, or the speed that it tells of."""
    url: str
    body: str
    """Body of the message, JSON."""
    attempts: int = 0
    """Attempts begun so far."""
    host: str = ""
    """Host of the receiver, in lower case."""
    caller: str = ""
    """Name of the job's sender; empty where there are no keys."""

    def headers(self, secret: bytes, now: int) -> dict[str, str]:
        """Return the headers of an attempt, with its signature.

        Args:
            now: seconds since the epoch.
        """
        signed = hmac.digest(secret, f"{self.id}.{now}.{self.body}".encode(), hashlib.sha256)
        return {
            "Content-Type": "application/json",
            "webhook-id": self.id,
            "webhook-timestamp": str(now),
            "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
        }

    def again_s(self) -> float | None:
        """Return the seconds until the next attempt after one that failed; None once it is given up."""
        return AGAIN_S[self.attempts - 1] if self.attempts <= len(AGAIN_S) else None


class Sending:
    """Messages on their way, counted by host and by caller: no receiver that hangs keeps the others waiting.

    For any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hosts: Counter[str] = Counter()
        self._callers: Counter[str] = Counter()

    def begin(self, webhook: Webhook) -> bool:
        """Count a message if there is room for it; return whether there was."""
        with self._lock:
            if not self._has_room(webhook):
                return False
            self._hosts[webhook.host] += 1
            self._callers[webhook.caller] += 1
            return True

    def end(self, webhook: Webhook) -> None:
        """Count a message no more."""
        with self._lock:
            for count, name in ((self._hosts, webhook.host), (self._callers, webhook.caller)):
                count[name] -= 1
                if not count[name]:
                    del count[name]

    def full_hosts(self) -> list[str]:
        """Return the hosts to which as many messages are on their way as may be."""
        with self._lock:
            return [host for host, count in self._hosts.items() if count >= MOST_OF_HOST]

    def full_callers(self) -> list[str]:
        """Return the callers of whom as many messages are on their way as may be."""
        with self._lock:
            return [caller for caller, count in self._callers.items() if caller and count >= MOST_OF_CALLER]

    def is_full(self) -> bool:
        """Return whether no message has room."""
        return self._hosts.total() >= MOST_AT_ONCE

    def _has_room(self, webhook: Webhook) -> bool:
        of_caller = self._callers[webhook.caller] if webhook.caller else 0
        return not self.is_full() and self._hosts[webhook.host] < MOST_OF_HOST and of_caller < MOST_OF_CALLER


def webhook_about(name: str, url: str, kind: str, at: str, data: str) -> Webhook:
    """Return a message to the operator's own receiver.

    Args:
        name: of what it tells, for the log.
        kind: its type, such as `speed.lowered`.
        at: when, ISO 8601.
        data: JSON.
    """
    body = f'{{"type":"{kind}","timestamp":"{at}","data":{data}}}'
    return Webhook(f"msg_{secrets.token_hex(12)}", name, url, body, host=(urlsplit(url).hostname or "").lower())


def webhooks_of(record: JobRecord, answer: str, at: str) -> list[Webhook]:
    """Return the message that a job's caller wants about its latest state, if any.

    Args:
        answer: the job as its route answers it, JSON.
        at: when, ISO 8601.
    """
    asked = record.asked
    if (url := asked.get("webhook_url")) is None:
        return []
    states = asked.get("webhook_events") or [state for state in JobState if state.final]
    if record.state not in states:
        return []
    body = f'{{"type":"job.{record.state}","timestamp":"{at}","data":{answer}}}'
    name, host = f"msg_{secrets.token_hex(12)}", (urlsplit(url).hostname or "").lower()
    return [Webhook(name, record.id, url, body, host=host, caller=record.caller)]
