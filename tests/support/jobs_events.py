"""The events of jobs as a client reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import requests

from tests.support.server import Server


class Told(NamedTuple):
    """An event as a client reads it."""

    number: int | None
    kind: str
    data: dict[str, Any]


def follow(
    server: Server, job: str, after: int | None = None, *, previews: int | None = None, lenient: bool = False
) -> Iterator[Told]:
    """Read a job's events.

    Args:
        after: number of the event to begin after.
        previews: how many are wanted; None: the request does not say.
        lenient: whether previews that cannot be had are to be ignored.
    """
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    if lenient:
        headers["X-Unsupported-Fields"] = "warn"
    query = {} if previews is None else {"previews": previews}
    with requests.get(f"{server.url}{job}/events", query, headers=headers, stream=True, timeout=120) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield from read(answer.iter_lines(chunk_size=1, decode_unicode=True))


def read(lines: Iterator[str]) -> Iterator[Told]:
    """The events of a stream."""
    fields: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value
        elif not line:
            if "event" in fields:
                number = int(fields["id"]) if "id" in fields else None
                yield Told(number, fields["event"], json.loads(fields["data"]))
            fields = {}
