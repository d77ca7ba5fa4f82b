"""Answers about jobs, and the addresses in them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.engine.job_answers import JobAnswers, page_of
from cache_dit_serving.media.outputs import OutputFolder
from tests.support.jobs import record

KEY = "k" * 32


@pytest.mark.parametrize("keys", [False, True])
def test_the_address_of_the_events_is_signed_where_there_are_keys(keys: bool, tmp_path: Path) -> None:
    environ = {"CACHE_DIT_SERVING__OUTPUTS__ROOT": str(tmp_path)}
    settings = load_settings(environ | ({"CACHE_DIT_SERVING__SERVER__API_KEYS": f'["{KEY}"]'} if keys else {}))
    answers = JobAnswers(settings, OutputFolder(tmp_path, None))

    async def signed(name: str) -> tuple[str, bool, bool]:
        address = urlsplit((await answers.answer(record("one"))).events or "")
        query = dict(parse_qsl(address.query))
        return address.path, bool(query), await answers.signs(name, query)

    assert asyncio.run(signed("one")) == ("/jobs/one/events", keys, keys)
    assert asyncio.run(signed("two")) == ("/jobs/one/events", keys, False)


def test_a_page_ends_with_the_id_after_which_the_next_begins() -> None:
    records = [record(name) for name in ("a", "b", "c")]
    page = page_of(records, 2)
    assert ([job.id for job in page.jobs], page.next) == (["a", "b"], "b")
    assert page_of(records[2:], 2).next is None
    assert page_of([], 2).next is None
