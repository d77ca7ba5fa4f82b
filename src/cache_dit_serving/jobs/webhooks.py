"""What becomes of a job, told to an address that its caller gave.

A message is signed as https://www.standardwebhooks.com has it, which most languages have a library for.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass

from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.schemas.jobs import JobState

AGAIN_S = (1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 3 * 3600.0, 6 * 3600.0, 12 * 3600.0)
"""After each attempt that failed; after the last one the message is given up, about a day after the first."""


@dataclass(frozen=True)
class Webhook:
    """One message on its way."""

    id: str
    """The same with each attempt: its receiver may get it twice."""
    job: str
    url: str
    body: str
    """JSON."""
    attempts: int = 0
    """Begun so far."""

    def headers(self, secret: bytes, now: int) -> dict[str, str]:
        """With the signature of an attempt.

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
        """Until the next attempt, after one that failed; None: it is given up."""
        return AGAIN_S[self.attempts - 1] if self.attempts <= len(AGAIN_S) else None


def webhooks_of(record: JobRecord, answer: str, at: str) -> list[Webhook]:
    """The message that a job's caller wants about the state that it came into, if any.

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
    return [Webhook(f"msg_{secrets.token_hex(12)}", record.id, url, body)]
