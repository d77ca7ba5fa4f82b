"""Parameters of the routes of jobs: queries and headers, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.datastructures import Headers

from cache_dit_serving.engine.previews import PARAM
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.findings import cut
from cache_dit_serving.jobs.store.exchanged import Page
from cache_dit_serving.schemas.jobs import JobState

RESPOND_ASYNC = "respond-async"
"""Preference of a request that wants to be a job, RFC 7240."""
IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}")
PAGE = 20
"""Jobs on a page where `limit` is left out."""
MOST_ON_A_PAGE = 100
MOST_PREVIEWS = 20
"""Previews of a job that one follower may want."""


def page_of_query(query: Mapping[str, str]) -> Page:
    """Return the page that `state`, `limit` and `after` choose.

    Raises:
        InvalidRequest: one of them is not what it must be, or there is another parameter.
    """
    for name in query:
        if name not in ("state", "limit", "after"):
            raise InvalidRequest(f"{cut(name)} is no parameter; there are state, limit and after", param=cut(name))
    states = [state.value for state in JobState]
    if (state := query.get("state")) not in (None, *states):
        raise InvalidRequest(f"state is {cut(state or '')!r}; it is one of {', '.join(states)}", param="state")
    return Page(limit_of(query), query.get("after"), JobState(state) if state else None)


def limit_of(query: Mapping[str, str]) -> int:
    """Return the number of jobs that a page is to have.

    Raises:
        InvalidRequest: `limit` is none of the numbers that it may be.
    """
    limit = query.get("limit", str(PAGE))
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= MOST_ON_A_PAGE):
        raise InvalidRequest(f"limit is {cut(limit)!r}; send 1 to {MOST_ON_A_PAGE}", param="limit")
    return int(limit)


def previews_of(query: Mapping[str, str]) -> int | None:
    """Return the number of previews that a follower wants; None where it does not say.

    Raises:
        InvalidRequest: it is no number of previews.
    """
    count = query.get(PARAM)
    if count is None:
        return None
    if not (count.isascii() and count.isdecimal() and int(count[:9]) <= MOST_PREVIEWS):
        raise InvalidRequest(f"{PARAM} is {cut(count)!r}; send how many, 0 to {MOST_PREVIEWS}", param=PARAM)
    return int(count)


def prefers_job(headers: Headers) -> bool:
    """Return whether a request wants to be a job, RFC 7240."""
    preferences = ",".join(headers.getlist("Prefer")).lower().split(",")
    return RESPOND_ASYNC in (preference.partition(";")[0].strip() for preference in preferences)


def idempotency_key(headers: Headers) -> str | None:
    """Return the Idempotency-Key of a request.

    Raises:
        InvalidRequest: it is too long, or has other characters than it may have.
    """
    key = headers.get("Idempotency-Key")
    if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidRequest(f"the header Idempotency-Key is {cut(key)!r}; send 1 to 255 letters, digits or signs")
    return key


def last_event_of(headers: Mapping[str, str]) -> int:
    """Return the number of the last event that a follower has, from the header that an EventSource sends again.

    Raises:
        InvalidRequest: it is no number.
    """
    number = headers.get("Last-Event-ID") or "0"
    if not (number.isascii() and number.isdecimal() and len(number) < 15):
        raise InvalidRequest(f"the header Last-Event-ID is {cut(number)!r}; send the id of an event, or leave it out")
    return int(number)
