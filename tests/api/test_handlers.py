"""Handlers of the table in this process, around a worker whose model is not loaded yet."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bentoml
import httpx
import pytest
from pydantic import BaseModel

from cache_dit_serving.api import matching
from cache_dit_serving.api.access import Access
from cache_dit_serving.api.envelope import Envelope
from cache_dit_serving.api.matching import mounted_routes
from cache_dit_serving.api.operation import Operation
from cache_dit_serving.api.parts import Parts
from cache_dit_serving.api.routes import OPERATIONS
from cache_dit_serving.config.settings import OutputSettings, Settings
from cache_dit_serving.engine.engine import Engine
from cache_dit_serving.engine.models import Models
from cache_dit_serving.errors import NotReady, StoreUnavailable
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.pipeline.protocol import Loaded
from tests.support.answers import check
from tests.support.envelope import LOCAL

HANDLED = [row for row in OPERATIONS if row.handler is not None]
WITHOUT_JOBS = [row for row in HANDLED if StoreUnavailable not in row.errors]
"""Rows that are answered without the jobs' database."""


def by_row(row: Operation) -> str:
    return f"{row.method} {row.route}"


@pytest.fixture(scope="module")
def loading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envelope]:
    """The envelope around the handlers of a server that loads its model."""
    root: Path = tmp_path_factory.mktemp("outputs")
    settings = Settings(outputs=OutputSettings(root=root))

    def load(stage: object) -> Loaded:
        raise AssertionError("the worker is not started")

    parts = Parts.over(Models([Engine(settings, PipelineWorker.alone(load, max_queue=1))]))
    envelope = Envelope(
        mounted_routes(), limits=settings.limits, server=settings.server, access=Access(settings.server)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bentoml, "get_current_service", lambda: SimpleNamespace(parts=parts))
        yield envelope
    parts.engine.decoding.close()


def answer_to(envelope: Envelope, row: Operation) -> httpx.Response:
    """The answer to the request of a row's example; pictures come as files."""
    options: dict[str, Any] = {}
    if row.body is not None and row.body.form:
        options = {"data": {"prompt": "a red apple"}, "files": {row.body.form[0].name: b"a picture"}}
    elif row.body is not None:
        options = {"json": dict(row.body.example)}

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(envelope), base_url=LOCAL) as client:
            return await client.request(row.method, re.sub(r"\{\w+\}", "0", row.route), **options)

    return asyncio.run(ask())


@pytest.mark.parametrize("row", WITHOUT_JOBS, ids=by_row)
def test_a_handler_answers_as_its_row_says(loading: Envelope, row: Operation) -> None:
    answer = answer_to(loading, row)
    assert answer.headers["X-Request-ID"]
    if answer.status_code >= 400:
        assert answer.status_code in {error.status for error in row.all_errors} - {500}
        assert answer.json().keys() == {"error", "request_id"}
        return
    assert answer.status_code == row.status
    media_type = answer.headers.get("content-type", "").partition(";")[0]
    if isinstance(row.answer, tuple):
        assert not row.summary or not row.answer or media_type in row.answer
    else:
        assert issubclass(row.answer, BaseModel)
        row.answer.model_validate_json(answer.content)


def test_the_document_is_made_when_it_is_first_asked_for(loading: Envelope) -> None:
    matching.document.cache_clear()
    mounted_routes()
    assert matching.document.cache_info().currsize == 0
    (row,) = (row for row in OPERATIONS if row.route == "/openapi.json")
    document = answer_to(loading, row)
    assert document.json()["paths"].keys() >= {"/generate", "/jobs"}
    assert answer_to(loading, row).content == document.content
    assert matching.document.cache_info().misses == 1


@pytest.mark.parametrize("row", [row for row in WITHOUT_JOBS if NotReady in row.errors], ids=by_row)
def test_what_needs_the_model_waits_for_it(loading: Envelope, row: Operation) -> None:
    check(answer_to(loading, row), 503, None)
