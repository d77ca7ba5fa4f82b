"""Answers as clients see them: which keys may be null, and which are left out."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from cache_dit_serving.api.answering import answered
from cache_dit_serving.api.routes import OPERATIONS
from cache_dit_serving.schemas.answers import (
    LONG_TEXT,
    Answer,
    ComparedImage,
    CompareResponse,
    GenerateResponse,
    HealthResponse,
    LoraInfo,
    LorasResponse,
    QueueReport,
)
from cache_dit_serving.schemas.openai import ImagesResponse, OpenAiImage

MODELS = sorted(
    {
        content
        for row in OPERATIONS
        for content in (row.answer, *(other.content for other in row.also.values()))
        if isinstance(content, type)
    },
    key=lambda model: model.__name__,
)


def nullable(model: type[BaseModel]) -> Iterator[tuple[str, bool]]:
    """`MODEL.FIELD` of each field in an answer that may be null, and whether the document requires it."""
    schema = model.model_json_schema()
    for name, part in {model.__name__: schema, **schema.get("$defs", {})}.items():
        for field, described in part.get("properties", {}).items():
            if {"type": "null"} in described.get("anyOf", ()):
                yield f"{name}.{field}", field in part.get("required", ())


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_the_document_requires_a_key_that_may_be_null_if_it_is_always_sent(model: type[BaseModel]) -> None:
    left_out = issubclass(model, Answer)
    assert [field for field, required in nullable(model) if required is left_out] == []


def test_an_answer_leaves_out_null_and_says_json() -> None:
    health = HealthResponse(status="ready", version="1.0", queue=QueueReport(waiting=0, running=False, step=0, steps=0))
    response = answered(health, 503, {"Retry-After": "1"})
    assert json.loads(bytes(response.body)) == {
        "status": "ready",
        "version": "1.0",
        "queue": {"waiting": 0, "running": False, "step": 0, "steps": 0},
    }
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/json"
    assert response.headers["retry-after"] == "1"


def test_a_key_that_the_document_requires_is_sent_as_null() -> None:
    facts = {"name": "a", "scale": 1.0, "min_scale": 0.0, "max_scale": 1.0, "fused": False, "loaded": False}
    unknown: dict[str, Any] = dict.fromkeys(LoraInfo.model_fields.keys() - facts.keys())
    response = answered(LorasResponse(loras=[LoraInfo(**facts, **unknown)]))
    assert json.loads(bytes(response.body)) == {"loras": [facts | unknown]}


BASE64 = base64.b64encode(bytes(range(256)) * 40).decode()
HOSTILE = 'a"\\\n\u2028é' * LONG_TEXT
"""A long path that JSON must escape."""


def made(model: Any, **fields: Any) -> BaseModel:
    """An answer with these fields alone."""
    answer: BaseModel = model.model_construct(**fields)
    return answer


@pytest.mark.parametrize("text", [BASE64, HOSTILE, "short"], ids=["base64", "hostile", "short"])
def test_a_file_in_an_answer_is_sent_as_pydantic_writes_it(text: str) -> None:
    side = made(ComparedImage, image=text)
    answers: list[BaseModel] = [
        made(GenerateResponse, images=[text, BASE64, text], warnings=[], request_id=BASE64),
        made(GenerateResponse, video=text, audio=BASE64),
        made(CompareResponse, cached=side, uncached=side, difference=text),
        made(ImagesResponse, data=[OpenAiImage(b64_json=text), OpenAiImage(url=text)]),
    ]
    for answer in answers:
        assert bytes(answered(answer).body) == answer.model_dump_json(warnings=False).encode()


def test_no_long_base64_passes_through_pydantics_json(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    dump = Answer.model_dump_json

    def noted(answer: Answer, **options: Any) -> str:
        written.append(dump(answer, **options))
        return written[-1]

    monkeypatch.setattr(Answer, "model_dump_json", noted)
    body = bytes(answered(made(GenerateResponse, images=[BASE64, BASE64])).body)
    assert json.loads(body)["images"] == [BASE64, BASE64]
    assert len(written[0]) < LONG_TEXT
