"""Verdicts of a safety check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

MOST_REASON_CHARACTERS = 200
"""Maximum length of a reason; the rest is cut off."""

Decision = Literal["allow", "refuse", "blank"]


class CheckFailed(Exception):
    """A check that failed, or did not answer in time. The text is for the log."""


@dataclass(frozen=True)
class Verdict:
    """Decision on one prompt or output."""

    decision: Decision
    reason: str = ""
    """The operator's text for the caller, one line."""


ALLOWED = Verdict("allow")


def verdict_of(answer: Any) -> Verdict:
    """Return the verdict in an answer, `{"verdict": ..., "reason": ...}`.

    Raises:
        CheckFailed: it is another value. None is not a consent.
    """
    match answer:
        case {"verdict": decision} if decision in get_args(Decision):
            reason = answer.get("reason") or ""
            if not isinstance(reason, str):
                raise CheckFailed("its reason is not a text")
            printable = "".join(letter if letter.isprintable() else " " for letter in reason)
            return Verdict(decision, " ".join(printable.split())[:MOST_REASON_CHARACTERS])
        case _:
            raise CheckFailed('it did not answer with {"verdict": "allow", "refuse" or "blank"}')
