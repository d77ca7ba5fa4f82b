"""Keys in this process: who may send what, and how often."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from cache_dit_serving.api.access import Access
from cache_dit_serving.api.matching import Match, match
from cache_dit_serving.api.operation import Operation
from cache_dit_serving.api.routes import OPERATIONS
from cache_dit_serving.config.settings import ServerSettings
from cache_dit_serving.errors import RateLimited
from cache_dit_serving.jobs.shared import CallerCounts
from tests.support.envelope import Behind, ask
from tests.support.limits import server

KEY = "sk-0123456789abcdef"
SETTINGS = ServerSettings.model_validate({"api_keys": [{"name": "shop", "key": KEY, "requests_per_minute": 2}]})


def generate() -> Operation:
    found = match("POST", "/generate")
    assert isinstance(found, Match)
    return found.operation


def admit(access: Access) -> str:
    """The name of the caller that sends a request to generate."""
    return asyncio.run(access.admit({"authorization": f"Bearer {KEY}"}, generate())).name


@pytest.mark.parametrize("shared", [True, False])
def test_requests_a_minute_hold_over_all_workers_that_share_their_counts(shared: bool, tmp_path: Path) -> None:
    counts = [CallerCounts(tmp_path), CallerCounts(tmp_path)] if shared else [None, None]
    one, other = (Access(SETTINGS, each) for each in counts)
    for worker in (one, other):
        assert admit(worker) == "shop"
    if shared:
        with pytest.raises(RateLimited, match="2 generations a minute"):
            admit(one)
    else:
        admit(one)
        with pytest.raises(RateLimited, match="2 generations a minute"):
            admit(one)


@pytest.mark.parametrize("shared", [True, False])
def test_one_request_in_two_minutes_admits_the_first(shared: bool, tmp_path: Path) -> None:
    rare = {"name": "rare", "key": KEY, "requests_per_minute": 0.5}
    access = Access(ServerSettings.model_validate({"api_keys": [rare]}), CallerCounts(tmp_path) if shared else None)
    assert admit(access) == "rare"
    with pytest.raises(RateLimited, match=r"0\.5 generations a minute") as refused:
        admit(access)
    assert refused.value.headers["Retry-After"] == "120"


def test_requests_a_minute_hold_over_servers_and_at_each_while_their_database_is_away(tmp_path: Path) -> None:
    async def admitted(access: Access) -> bool:
        try:
            await access.admit({"authorization": f"Bearer {KEY}"}, generate())
        except RateLimited:
            return False
        return True

    async def sent() -> None:
        url = f"sqlite:///{tmp_path}/jobs.sqlite3"
        one, other = Access(SETTINGS), Access(SETTINGS)
        async with server(url) as limits, server(url) as other_limits:
            one.share(limits)
            other.share(other_limits)
            assert [await admitted(each) for each in (one, other, other)] == [True, True, False]
        # The database is closed: one of this server's two was sent.
        assert [await admitted(each) for each in (one, one)] == [True, False]

    asyncio.run(sent())


ROOT_KEY = "sk-root-0123456789abc"
KEYS: dict[str, Any] = {
    "api_keys": [{"name": "shop", "key": KEY}, {"name": "root", "key": ROOT_KEY, "scopes": ["admin"]}]
}


def sent(operation: Operation, behind: Behind, key: str | None, **server: Any) -> httpx.Response:
    """The answer to a request of this row that is without fault but for its key, if any."""
    body = operation.body.example if operation.body is not None else None
    return ask(
        operation.method,
        re.sub(r"\{\w+\}", "0", operation.route),
        behind,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        json=body,
        server=KEYS | server,
    )


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"Authorization": "Basic YTpi"}, "missing_api_key"),
        ({"Authorization": "Bearer "}, "missing_api_key"),
        ({"Authorization": "Bearer sk-nobody"}, "invalid_api_key"),
        ({"Authorization": f"Bearer {KEY[:-1]}"}, "invalid_api_key"),
        ({"Authorization": "Bearer é".encode("latin-1")}, "invalid_api_key"),
    ],
)
@pytest.mark.parametrize(
    "route", ["POST /generate", "GET /jobs", "GET /capabilities", "GET /nowhere", "POST /flush_cache"]
)
def test_without_a_key_nothing_is_done(route: str, headers: dict[str, Any], code: str) -> None:
    behind = Behind()
    method, path = route.split()
    refused = ask(method, path, behind, headers=headers, json={"prompt": "a cat"}, server=KEYS)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert refused.json()["error"]["type"] == "authentication_error"
    assert refused.json()["error"]["code"] == code
    assert behind.seen == []


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: f"{each.method} {each.route}")
def test_what_a_key_may_do_is_its_scope(operation: Operation) -> None:
    admin, shop = Behind(), Behind()
    assert sent(operation, admin, ROOT_KEY).status_code == 200
    answer = sent(operation, shop, KEY)
    if operation.scope == "admin":
        assert answer.status_code == 403
        assert answer.json()["error"]["type"] == "permission_error"
        assert "admin" in answer.json()["error"]["message"]
        assert shop.seen == []
    else:
        assert answer.status_code == 200
        is_open = sent(operation, Behind(), None).status_code == 200
        [caller] = shop.callers
        assert caller.name == ("shop" if not is_open or operation.signed else "")


def test_what_is_open_is_what_the_operator_opens() -> None:
    def open_to_all(*names: str) -> set[str]:
        return {
            operation.route
            for operation in OPERATIONS
            if not operation.signed and sent(operation, Behind(), None, open_routes=names).status_code == 200
        }

    assert open_to_all() == set()
    opened = {
        "health": {"/livez", "/readyz", "/healthz", "/health"},
        "metrics": {"/metrics"},
        "docs": {"/", "/docs", "/docs.js", "/docs.json", "/favicon.ico", "/openapi.json", "/schema.json"}
        | {"/ui", "/ui/{path}", "/static_content/{path}"},
    }
    for name, routes in opened.items():
        assert open_to_all(name) == routes
