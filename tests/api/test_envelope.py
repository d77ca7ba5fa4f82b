"""Paths, headers and origins at the outermost layer, in this process."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.support.envelope import LOCAL, Behind, around, ask


def refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("path", ["/generate%0A", "/generate%00", "/generate//", "/%67enerate%0d", "/nowhere"])
def test_a_request_without_a_row_reaches_nothing_whatever_its_body(path: str) -> None:
    behind = Behind()
    answer = ask("POST", path, behind, content=b"[" * 9_000_000, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 404)
    assert behind.seen == []


def test_a_slash_at_the_end_changes_neither_checks_nor_route() -> None:
    behind = Behind()
    assert ask("POST", "/generate/", behind, json={"width": 0}).json()["error"]["param"] == "width"
    assert ask("POST", "/generate/", behind, json={"prompt": "a"}).status_code == 200
    assert [path for path, _ in behind.seen] == ["/generate"]


@pytest.mark.parametrize(
    "headers",
    [
        [("Content-Length", "2"), ("Transfer-Encoding", "chunked")],
        [("Content-Type", "application/json"), ("Content-Type", "text/plain")],
        [("Authorization", "Bearer a"), ("Authorization", "Bearer b")],
        [("Origin", LOCAL), ("Origin", "http://elsewhere.example")],
        [("Content-Length", "2"), ("Content-Length", "2")],
    ],
)
def test_headers_that_contradict_each_other_are_refused(headers: list[tuple[str, str]]) -> None:
    behind = Behind()
    refused(ask("POST", "/health", behind, headers=headers, content=b"{}"), 400, "invalid_value")
    assert behind.seen == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:8080"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3001"},
        {"Origin": "http://localhost:3000.elsewhere.example"},
    ],
)
@pytest.mark.parametrize(
    "route", ["POST /flush_cache", "POST /jobs", "PATCH /jobs/x", "DELETE /jobs/x", "POST /loras/x"]
)
def test_a_page_of_another_site_changes_nothing(route: str, headers: dict[str, str]) -> None:
    behind = Behind()
    method, path = route.split()
    refused(ask(method, path, behind, headers=headers), 403, "cross_site")
    assert behind.seen == []
    assert ask("GET", "/jobs", behind, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {"Origin": LOCAL}, {"Origin": LOCAL.upper()}],
)
def test_programs_and_the_servers_own_pages_may(headers: dict[str, str]) -> None:
    assert ask("POST", "/flush_cache", Behind(), headers=headers).status_code == 200


def test_where_there_are_keys_a_page_elsewhere_with_one_may() -> None:
    key = "sk-0123456789abcdef"
    headers = {"Sec-Fetch-Site": "cross-site", "Authorization": f"Bearer {key}"}
    server = {"api_keys": [{"name": "ops", "key": key, "scopes": ["admin"]}]}
    assert ask("POST", "/flush_cache", Behind(), headers=headers, server=server).status_code == 200


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("draw.example", True),
        ("DRAW.example:8443", True),
        ("a.b.draw.test", True),
        ("[::1]:3000", True),
        ("draw.test", False),
        ("draw.example.elsewhere.example", False),
        ("10.0.0.7", False),
        ("draw.example@elsewhere.example", False),
        ("[", False),
        ("", False),
    ],
)
def test_only_allowed_hosts_are_answered(host: str, allowed: bool) -> None:
    server = {"allowed_hosts": ("draw.example", "*.draw.test", "::1")}
    answer = ask("GET", "/health", Behind(), headers={"Host": host}, server=server)
    if allowed:
        assert answer.status_code == 200
    else:
        refused(answer, 400, "invalid_host")
    assert ask("GET", "/readyz", Behind(), headers={"Host": host}, server=server).status_code == 200


def test_a_websocket_is_closed() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    behind = Behind()
    envelope = around(behind)
    asyncio.run(envelope({"type": "websocket", "path": "/generate", "headers": []}, receive, send))
    assert sent == [{"type": "websocket.close"}]
    assert behind.seen == []


def test_a_byte_order_mark_before_the_json_is_not_read() -> None:
    behind = Behind()
    headers = {"Content-Type": "application/json"}
    body = b"\xef\xbb\xbf" + b'{"prompt": "a"}'
    assert ask("POST", "/generate", behind, content=body, headers=headers).status_code == 200
    assert [seen for _, seen in behind.seen] == [b'{"prompt": "a"}']
    refused_utf16 = ask("POST", "/generate", behind, content='{"prompt": "a"}'.encode("utf-16"), headers=headers)
    refused(refused_utf16, 400, "invalid_json")
    assert "UTF-8" in refused_utf16.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (r'{"prompt": "a \ud83d cat"}', "prompt"),
        (r'{"prompt": "\ude00"}', "prompt"),
        (r'{"prompt": "a", "loras": [{"name": "\ud800"}]}', "loras.0.name"),
        (r'{"prompt": "a", "\udfff": 1}', "the body"),
        (r'{"prompt": "\ud83d\ude00"}', None),
    ],
)
def test_half_a_character_is_named_by_its_field(body: str, param: str | None) -> None:
    answer = ask("POST", "/generate", Behind(), content=body, headers={"Content-Type": "application/json"})
    if param is None:
        assert answer.status_code == 200
        return
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert "surrogate" in answer.json()["error"]["message"]


def test_a_listed_origin_may_change_things_and_another_may_not() -> None:
    server = {"cors_origins": ["https://studio.example"]}
    for origin, status in (("https://studio.example", 200), ("https://elsewhere.example", 403)):
        headers = {"Sec-Fetch-Site": "cross-site", "Origin": origin}
        assert ask("POST", "/flush_cache", Behind(), headers=headers, server=server).status_code == status
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://elsewhere.example"}
    assert ask("POST", "/flush_cache", Behind(), headers=headers, server={"cors_origins": ["*"]}).status_code == 200


def test_a_proxy_that_is_not_trusted_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    envelope = around(Behind())

    async def ask_twice() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(envelope), base_url=LOCAL) as client:
            for _ in range(2):
                await client.get("/health", headers={"X-Forwarded-Proto": "https"})

    asyncio.run(ask_twice())
    assert caplog.text.count("server.trusted_proxies") == 1
