"""Bodies at the outermost layer, in this process: what is no request reaches nothing behind it."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_dit_serving.api.body import DRAIN_LIMITS, _read, drop_rest, read_body
from cache_dit_serving.errors import BodyTooLarge, BodyTooSlow, ClientGone, InvalidRequest
from cache_dit_serving.schemas.request import JobRequest
from tests.support.answers import check
from tests.support.envelope import Behind, ask
from tests.support.properties import UNTIMED

JSON = {"Content-Type": "application/json"}


def refused(body: bytes, headers: dict[str, str] = JSON) -> httpx.Response:
    """The answer to a body that reaches nothing."""
    behind = Behind()
    answer = ask("POST", "/generate", behind, content=body, headers=headers)
    assert behind.seen == []
    return answer


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"prompt": "a', "not valid JSON"),
        (b"not json", "not valid JSON"),
        (b'{"prompt": "\xff\xfe"}', "not valid JSON"),
        (b"[" * 10_000, "not valid JSON"),
        (b'{"seed": ' + b"9" * 5_000 + b"}", "not valid JSON"),
    ],
)
def test_a_body_that_is_not_json_is_refused(body: bytes, words: str) -> None:
    check(refused(body), 400, None, words)


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"null", b"7"])
def test_json_that_is_no_object_is_refused(body: bytes) -> None:
    check(refused(body), 400, None)


HUGE = 300_000


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (
            f'{{"prompt": "a", "cache": {{"steps_computation_mask": [{"2," * 1000}2]}}}}',
            "cache.steps_computation_mask",
            "1,001 values",
        ),
        (f'{{"cache": {{"steps_computation_mask": [{"2," * HUGE}2]}}}}', None, "more values than any request"),
        (f'{{"prompt": "a", "sigmas": [{"3," * 90_000}2]}}', "sigmas", "90,001 values"),
        ("{" + ",".join(f'"k{i}":1' for i in range(60_000)) + "}", None, "more values than any request"),
        ("{" + ",".join(f'"k{i}":1' for i in range(10_000)) + "}", None, "10,000 fields"),
        ("[" + "[]," * HUGE + "[]]", None, "more values than any request"),
        ('{"prompt": "a", "sigmas": [' + '"a",' * 900 + '"a"]}', "sigmas.0", "; and 896 more"),
        (f'{{"prompt": "a", "{"k" * 100_000}": 1}}', "k" * 60 + "...", "not a field"),
        ('{"prompt": "a", "seed": 1, "seed": 2}', "seed", "twice"),
        ('{"prompt": "a", "cache": {"strict": true, "strict": false}}', "strict", "twice"),
        ('{"prompt": "a:b", "prompt": "a"}', "prompt", "twice"),
        (r'{"seed": 1, "prompt": "a\u003a", "seed": 2}', "seed", "twice"),  # an escape for the colon that is dropped
        (f'{{"prompt": "a", "image_urls": ["data:,{"A" * 100_000}"], "seed": 1, "seed": 2}}', "seed", "twice"),
    ],
)
def test_a_body_with_far_too_much_gets_a_short_answer(
    body: str, param: str | None, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "cache_dit_serving"):
        response = refused(body.encode())
    check(response, 400, param, words)
    assert len(response.content) < 1_000
    [line] = caplog.records
    assert (line.levelname, line.exc_info) == ("INFO", None)
    assert len(line.getMessage()) < 200


def objects(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Objects as text, some with one key twice."""
    keys = st.sampled_from(['"a"', '"b:"', '"b"', r'"b\u003a"', r'"\u0061"'])
    pairs = st.tuples(keys, parts).map(": ".join)
    return st.lists(pairs, max_size=4).map(lambda each: f"{{{', '.join(each)}}}")


VALUES = ("1", "null", '""', '":"', '"a:b"', r'"\u003a"', r'"\u003A\n"', '"data:image/png;base64,AA=="', '"é:"')
PARTS = st.recursive(
    st.sampled_from(VALUES),
    lambda parts: st.lists(parts, max_size=3).map(lambda each: f"[{', '.join(each)}]") | objects(parts),
    max_leaves=8,
)


@UNTIMED
@given(objects(PARTS))
def test_a_key_twice_is_found_wherever_it_is(body: str) -> None:
    twice = False

    def look(pairs: list[tuple[str, Any]]) -> None:
        nonlocal twice
        twice |= len(dict(pairs)) < len(pairs)

    json.loads(body, object_pairs_hook=look)
    if twice:
        with pytest.raises(InvalidRequest, match="stands twice"):
            _read(body.encode())
    else:
        assert _read(body.encode()) == json.loads(body)


def test_a_large_picture_is_not_read_once_more_for_keys_that_stand_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = "data:image/png;base64," + "A" * 1_000_000
    body = json.dumps({"prompt": 'a "red" apple:\n', "image_urls": [picture]}).encode()
    monkeypatch.setattr(json, "loads", lambda *given, **options: pytest.fail("it is read once more"))
    assert _read(body)["image_urls"] == [picture]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(number: str) -> None:
    body = f'{{"prompt": "a cat", "negative_prompt": "x", "true_cfg_scale": {number}}}'
    check(refused(body.encode()), 400, "true_cfg_scale", "true_cfg_scale")


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/xml"],
)
def test_another_content_type_is_refused(content_type: str) -> None:
    response = refused(b'{"prompt": "a"}', {"Content-Type": content_type})
    check(response, 415, None, "application/json")


def test_an_encoded_body_is_refused() -> None:
    headers = {**JSON, "Content-Encoding": "gzip"}
    check(refused(b"\x1f\x8b", headers), 415, None, "without Content-Encoding")


def parts(*bodies: bytes, then: dict[str, Any] | None = None) -> Any:
    """A `receive` with these parts of a body, of which more are to come; then this message, or nothing ever."""
    waiting = [{"type": "http.request", "body": body, "more_body": True} for body in bodies]
    waiting += [then] if then is not None else []

    async def receive() -> dict[str, Any]:
        return waiting.pop(0) if waiting else await asyncio.Event().wait()  # type: ignore[return-value]

    return receive


def test_a_body_comes_whole_or_not_at_all() -> None:
    last = {"type": "http.request", "body": b"c"}
    assert asyncio.run(read_body(parts(b"a", b"b", then=last), max_bytes=3, max_s=5)) == b"abc"
    with pytest.raises(BodyTooLarge, match="2 bytes"):
        asyncio.run(read_body(parts(b"a", b"b", then=last), max_bytes=2, max_s=5))
    with pytest.raises(BodyTooSlow, match=r"0\.01 s"):
        asyncio.run(read_body(parts(b"a"), max_bytes=3, max_s=0.01))
    with pytest.raises(ClientGone):
        asyncio.run(read_body(parts(b"a", then={"type": "http.disconnect"}), max_bytes=3, max_s=5))


@pytest.mark.parametrize("last", [{"type": "http.request", "body": b"c"}, {"type": "http.disconnect"}])
def test_what_is_left_of_a_refused_body_is_read_to_its_end_or_to_a_limit(last: dict[str, Any]) -> None:
    async def left_of(bodies: int) -> bool:
        """Whether anything can still be read after it."""
        receive = parts(*[b"xx"] * bodies, then=last)
        await drop_rest(receive, max_bytes=2)
        try:
            await asyncio.wait_for(receive(), 0.01)
        except TimeoutError:
            return False
        return True

    assert not asyncio.run(left_of(DRAIN_LIMITS - 1))
    assert asyncio.run(left_of(DRAIN_LIMITS))


def test_a_client_that_stops_sending_a_refused_body_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache_dit_serving.api.body.DRAIN_S", 0.01)
    asyncio.run(asyncio.wait_for(drop_rest(parts(b"x"), max_bytes=100), 60))


@pytest.mark.parametrize("lenient", [False, True])
def test_a_body_is_read_once_and_handed_on_beside_its_request(lenient: bool) -> None:
    behind = Behind()
    headers = {"X-Unsupported-Fields": "warn" if lenient else "refuse"}
    body = {"prompt": "a cat", "width": 96.0, "image_urls": ["QUFBQQ=="], "webhook_url": "https://shop.example/"}
    assert ask("POST", "/jobs", behind, json=body, headers=headers).status_code == 200
    [state] = behind.states
    request = state.asked(JobRequest)
    assert (request.prompt, request.width, request.image_urls) == ("a cat", 96, ["upload:0"])
    assert request.model_fields_set == body.keys()
    assert state.body is not None
    assert state.body.uploads == ("QUFBQQ==",)
    assert state.lenient is lenient
    assert state.operation is not None
    assert state.operation.route == "/jobs"


def test_a_route_without_a_body_has_none_in_its_state() -> None:
    behind = Behind()
    assert ask("GET", "/jobs", behind).status_code == 200
    assert [(state.body, state.lenient) for state in behind.states] == [(None, False)]
