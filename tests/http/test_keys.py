"""API keys: who may do what, and who sees whose."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from cache_dit_serving.api.operation import Operation
from cache_dit_serving.api.routes import OPERATIONS
from tests.support.jobs import LONG, PROMPT
from tests.support.server import Server, ready, serving

ALICE, BOB, ROOT_KEY, SLOW, LATER = (f"sk-{name}-{'x' * 16}" for name in ("alice", "bob", "root", "slow", "later"))
STUDIO = "https://studio.example"
PLACES = 8
"""Generations that may wait."""
FOLLOWERS = 2
"""Event streams that a caller may have."""


@dataclass
class Guarded:
    """A server with keys, and the file of some of them."""

    server: Server
    file: Path

    def ask(self, method: str, path: str, key: str | None, **options: Any) -> requests.Response:
        headers = options.pop("headers", {}) | ({"Authorization": f"Bearer {key}"} if key else {})
        return requests.request(method, self.server.url + path, headers=headers, timeout=180, **options)

    def job(self, key: str, **fields: Any) -> str:
        answer = self.ask("POST", "/jobs", key, json={"prompt": PROMPT} | fields)
        assert answer.status_code == 202, answer.text
        return str(answer.headers["Location"])

    def ended(self, job: str, key: str) -> dict[str, Any]:
        end = time.monotonic() + 180
        while (answer := self.ask("GET", job, key).json())["state"] in ("queued", "running"):
            assert time.monotonic() < end
            time.sleep(0.05)
        return dict(answer)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    file = folder / "keys.yaml"
    file.write_text(json.dumps([{"name": "slow", "key": SLOW, "requests_per_minute": 2, "max_live": 1}]))
    keys = [
        {"name": "alice", "key": ALICE},
        {"name": "bob", "sha256": hashlib.sha256(BOB.encode()).hexdigest()},
        {"name": "root", "key": ROOT_KEY, "scopes": ["admin"]},
    ]
    environ = {
        "CACHE_DIT_SERVING__SERVER__API_KEYS": json.dumps(keys),
        "CACHE_DIT_SERVING__SERVER__API_KEYS_FILE": str(file),
        "CACHE_DIT_SERVING__SERVER__CORS_ORIGINS": json.dumps([STUDIO]),
        "CACHE_DIT_SERVING__PROFILING__REQUESTS": "asked",
        "CACHE_DIT_SERVING__PROFILING__FOLDER": str(folder / "profiles"),
        "CACHE_DIT_SERVING__DEFAULTS__NUM_INFERENCE_STEPS": "4",  # nothing here is about pictures
        "CACHE_DIT_SERVING__LIMITS__MAX_QUEUE": str(PLACES),
        "CACHE_DIT_SERVING__LIMITS__MAX_FOLLOWERS": str(FOLLOWERS),
    }
    with serving(folder, environ=environ) as running:
        running.wait_for(ready)
        yield Guarded(running, file)


@pytest.fixture
def guarded(started: Guarded) -> Guarded:
    """The server with nothing to do."""
    started.server.wait_until_idle()
    return started


def test_without_a_key_nothing_is_done(guarded: Guarded) -> None:
    for method, path in (("POST", "/generate"), ("GET", "/jobs"), ("GET", "/nowhere")):
        refused = guarded.ask(method, path, None, json={"prompt": PROMPT})
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert refused.json()["error"]["type"] == "authentication_error"
        assert refused.json()["error"]["code"] == "missing_api_key"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/metrics", "/docs", "/openapi.json"])
def test_what_is_open_needs_none(guarded: Guarded, path: str) -> None:
    assert guarded.ask("GET", path, None).status_code == 200


def test_what_a_key_may_do_is_its_scope(guarded: Guarded) -> None:
    for path, body in (
        *((route, {}) for route in ("/flush_cache", "/sleep", "/wake")),
        ("/models/x/reload", {"folder": "x"}),
        ("/loras/x", None),
        ("/generate", {"prompt": PROMPT, "profile": True}),
    ):
        refused = guarded.ask("POST", path, ALICE, json=body)
        assert refused.status_code == 403, path
        assert refused.json()["error"]["type"] == "permission_error"
        assert "admin" in refused.json()["error"]["message"]
    assert guarded.ask("GET", "/log/warnings", ALICE).status_code == 403
    assert guarded.ask("GET", "/log/warnings", ROOT_KEY).status_code == 200
    assert guarded.ask("POST", "/flush_cache", ROOT_KEY, json={}).status_code == 200
    for key in (ALICE, BOB, ROOT_KEY):
        assert (
            guarded.ask("POST", "/generate", key, json={"prompt": PROMPT, "num_inference_steps": 2}).status_code == 200
        )
        assert guarded.ask("GET", "/get_model_info", key).status_code == 200


def spellings(path: str) -> Iterator[tuple[str, bool]]:
    """Other spellings of a path, each with whether it is the same path."""
    for control in ("%0A", "%0D", "%00", "%0D%0A", "%E2%80%A8"):
        yield from ((path + control, False), (control + path, False))
    yield from ((path + "/", path != "/"), (path + "//", False), ("/" + path, False), ("/." + path, False))
    yield from ((path + "/.", False), (f"/x/..{path}", False), (f"/%2e%2e{path}", False), (path + "%2f", path != "/"))
    if path != "/":
        yield path.upper(), False
        yield f"/%{ord(path[1]):02x}{path[2:]}", True


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: f"{each.method} {each.route}")
def test_no_spelling_of_a_path_allows_more_than_the_path(guarded: Guarded, operation: Operation) -> None:
    path = re.sub(r"\{\w+\}", "0", operation.route)
    connection = http.client.HTTPConnection(guarded.server.url.removeprefix("http://"), timeout=60)

    def status(target: str) -> int:
        # ALICE lacks the scope admin. The body is one that no route takes, so that nothing runs.
        headers = {"Authorization": f"Bearer {ALICE}", "Content-Type": "application/json"}
        body = json.dumps({"no_such_field": 1}) if operation.body and operation.scope != "admin" else None
        connection.request(operation.method, target, body, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status

    with contextlib.closing(connection):
        exact = status(path)
        assert operation.scope != "admin" or exact == 403
        for target, same in spellings(path):
            assert status(target) in ((exact, 307) if same else (400, 404, 405)), target


def test_callers_do_not_see_each_others_jobs(guarded: Guarded) -> None:
    job = guarded.job(ALICE, seed=5)
    answer = guarded.ended(job, ALICE)
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", job, {}),
        ("GET", f"{job}/events", {}),
        ("GET", f"{job}/outputs/0", {}),
        ("PATCH", job, {"json": {"priority": 0}}),
        ("DELETE", job, {}),
    ]
    for method, path, options in asked:
        unknown = guarded.ask(method, path.replace(job, "/jobs/000000000000000000000000"), BOB, **options)
        refused = guarded.ask(method, path, BOB, **options)
        assert refused.status_code == 404
        assert refused.json()["error"] == unknown.json()["error"]
    assert guarded.ask("GET", f"/jobs?after={answer['id']}", BOB).status_code == 400
    listed = {
        key: {each["id"] for each in guarded.ask("GET", "/jobs?limit=100", key).json()["jobs"]}
        for key in (ALICE, BOB, ROOT_KEY)
    }
    assert listed[BOB].isdisjoint(listed[ALICE])
    assert answer["id"] in listed[ALICE]
    assert listed[ALICE] | listed[BOB] <= listed[ROOT_KEY]
    assert guarded.ask("GET", f"{job}/outputs/0", ALICE).content[:4] == b"\x89PNG"
    assert guarded.ask("GET", f"{job}/outputs/0", ROOT_KEY).status_code == 200
    # The key of a retry is its caller's.
    headers = {"Idempotency-Key": "once"}
    jobs = [
        guarded.ask("POST", "/jobs", key, json={"prompt": PROMPT, "seed": seed}, headers=headers)
        for seed, key in ((1, ALICE), (2, BOB), (1, ALICE))
    ]
    ids = [each.json()["id"] for each in jobs]
    assert ids[0] == ids[2] != ids[1]
    for each, key in ((ids[0], ALICE), (ids[1], BOB)):
        guarded.ended(f"/jobs/{each}", key)
        guarded.ask("DELETE", f"/jobs/{each}", key)
    assert guarded.ask("DELETE", job, ROOT_KEY).status_code == 200


def test_addresses_of_outputs_are_signed(guarded: Guarded) -> None:
    answer = guarded.ask("POST", "/generate", ALICE, json={"prompt": PROMPT, "seed": 1, "output_format": "url"}).json()
    (url,) = answer["images"]
    path = url.removeprefix(guarded.server.url)
    assert guarded.ask("GET", path, None).content[:4] == b"\x89PNG"
    bare, query = path.split("?")
    expires, signature = (part.split("=")[1] for part in query.split("&"))
    for changed, key in (
        (bare, None),
        (bare, BOB),
        (f"{bare}?expires={int(expires) + 1}&signature={signature}", None),
        (f"{bare}?expires=1&signature={signature}", None),
        (f"{bare}?expires={expires}&signature={signature[:-1]}", None),
        (f"{bare.replace('.png', '.jpeg')}?{query}", None),
        ("/outputs/.signing-key", None),
        ("/outputs/jobs.sqlite3", BOB),
    ):
        refused = guarded.ask("GET", changed, key)
        assert refused.status_code == 401, changed
        assert "signed" in refused.json()["error"]["message"]
    assert guarded.ask("GET", bare, ROOT_KEY).status_code == 200
    assert guarded.ask("GET", path, "sk-nobody-at-all-here").status_code == 401
    job = guarded.job(ALICE, seed=1)
    first = guarded.ended(job, ALICE)["result"]["images"][0]

    def signed_now() -> str:
        return str(guarded.ask("GET", job, ALICE).json()["result"]["images"][0])

    guarded.server.wait_for(lambda _: signed_now() != first)  # signed anew, by the second
    assert requests.get(signed_now(), timeout=60).status_code == 200
    by_path = guarded.ended(guarded.job(ALICE, seed=1, output_format="path"), ALICE)
    assert Path(by_path["result"]["images"][0]).is_file()


def test_one_caller_does_not_starve_another(guarded: Guarded) -> None:
    many = [guarded.job(ALICE, num_inference_steps=12, speed="lossless") for _ in range(2)]
    many += [guarded.job(ALICE, **LONG) for _ in range(2)]
    few = guarded.job(BOB, num_inference_steps=4)
    assert guarded.ask("GET", few, BOB).json()["position"] <= 2
    guarded.ended(few, BOB)
    states = [guarded.ask("GET", job, ALICE).json()["state"] for job in many]
    assert states[-1] == "queued"
    for job in many:
        guarded.ask("DELETE", job, ALICE)


def test_a_caller_that_keeps_submitting_is_refused_and_another_finds_a_place(guarded: Guarded) -> None:
    def submit(key: str) -> requests.Response:
        return guarded.ask("POST", "/jobs", key, json={"prompt": PROMPT} | LONG)

    with contextlib.ExitStack() as stack:
        answers = [submit(ALICE) for _ in range(2 * PLACES)]
        for answer in answers:
            if answer.status_code == 202:
                stack.callback(guarded.ask, "DELETE", answer.headers["Location"], ALICE)
        refused = [answer for answer in answers if answer.status_code != 202]
        assert answers[-1] in refused
        assert {(answer.status_code, answer.json()["error"]["code"]) for answer in refused} == {(429, "queue_full")}
        assert f"this key's share of the queue of {PLACES} is taken" in answers[-1].json()["error"]["message"]
        assert int(answers[-1].headers["Retry-After"]) > 0
        stack.callback(guarded.ask, "DELETE", guarded.job(BOB, **LONG), BOB)
        assert submit(ALICE).status_code == 429


def test_a_caller_does_not_learn_that_another_sent_its_prompt(guarded: Guarded) -> None:
    def hits(key: str) -> int:
        fields = {"prompt": "a harbour that alice alone draws", "seed": 1, "num_inference_steps": 2}
        answer = guarded.ask("POST", "/generate", key, json=fields)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["timings"]["prompt_hits"])

    assert [hits(key) for key in (ALICE, BOB, ROOT_KEY, ALICE, BOB)] == [0, 0, 0, 1, 1]


def test_a_caller_follows_so_many_jobs_at_a_time_and_another_as_many(guarded: Guarded) -> None:
    jobs = {key: guarded.job(key, **LONG) for key in (ALICE, BOB)}
    signed = guarded.ask("GET", jobs[ALICE], ALICE).json()["events"]
    with contextlib.ExitStack() as stack:
        for key, job in jobs.items():
            stack.callback(guarded.ask, "DELETE", job, key)

        def follow(key: str | None, route: str) -> requests.Response:
            return stack.enter_context(guarded.ask("GET", route, key, stream=True))

        streams = [follow(ALICE, f"{jobs[ALICE]}/events") for _ in range(FOLLOWERS)]
        assert [stream.status_code for stream in streams] == [200] * FOLLOWERS
        for sender, route in ((ALICE, f"{jobs[ALICE]}/events"), (None, signed)):
            refused = follow(sender, route)
            assert refused.status_code == 429
            assert "limits.max_followers" in refused.json()["error"]["message"]
            assert int(refused.headers["Retry-After"]) > 0
        assert follow(BOB, f"{jobs[BOB]}/events").status_code == 200
        streams[0].close()
        guarded.server.wait_for(lambda _: follow(ALICE, f"{jobs[ALICE]}/events").status_code == 200)


def test_limits_of_a_key(guarded: Guarded) -> None:
    job = guarded.job(SLOW, **LONG)
    refused = guarded.ask("POST", "/generate", SLOW, json={"prompt": PROMPT})
    assert refused.status_code == 429
    assert "1 generations of this key wait or run" in refused.json()["error"]["message"]
    assert guarded.ask("DELETE", job, SLOW).status_code == 200
    refused = guarded.ask("POST", "/generate", SLOW, json={"prompt": PROMPT})
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert "more than 2 generations a minute" in refused.json()["error"]["message"]
    assert 1 <= int(refused.headers["Retry-After"]) <= 30
    assert guarded.ask("GET", "/jobs", SLOW).status_code == 200  # asking is not drawing


def test_the_file_is_read_again(guarded: Guarded) -> None:
    assert guarded.ask("GET", "/jobs", LATER).status_code == 401
    before = guarded.file.read_text()

    def answered(key: str) -> int:
        return guarded.ask("GET", "/jobs", key).status_code

    guarded.file.write_text(json.dumps([*json.loads(before), LATER]))
    guarded.server.wait_for(lambda _: answered(LATER) == 200)
    guarded.file.write_text(before)
    guarded.server.wait_for(lambda _: answered(LATER) == 401)


@pytest.mark.parametrize(
    "content",
    ["{no keys", "- 2024-13-45", "[" * 3000, f"- {{{LATER}: bob}}", f"{{{LATER}: bob}}", "- !!timestamp x"],
    ids=["no YAML", "no date", "nested", "a key as a name", "a key as the list's name", "no value of its tag"],
)
def test_a_file_that_cannot_be_read_again_is_one_line_of_log_and_the_keys_of_before_hold(
    guarded: Guarded, content: str
) -> None:
    before, logged = guarded.file.read_text(), len(guarded.server.log())

    def said() -> str:
        return guarded.server.log()[logged:]

    def read_again(answered: str) -> bool:
        assert guarded.ask("GET", "/jobs", SLOW).status_code == 200
        return answered in said()

    try:
        guarded.file.write_text(content)
        guarded.server.wait_for(lambda _: read_again("the API keys of before hold"))
        assert guarded.ask("GET", "/jobs", LATER).status_code == 401
    finally:
        guarded.file.write_text(before)
    guarded.server.wait_for(lambda _: read_again("the file of API keys was read again: 1 keys"))
    assert said().count("the API keys of before hold") == 1
    assert "Traceback" not in said()
    assert LATER not in said()


def test_keys_stay_out_of_sight(guarded: Guarded) -> None:
    told = [guarded.server.log(), guarded.ask("GET", "/metrics", None).text]
    told += [guarded.ask("GET", path, ROOT_KEY).text for path in ("/get_model_info", "/capabilities", "/openapi.json")]
    told += [guarded.ask("POST", "/generate", ALICE, json={"prompt": PROMPT}).text]
    kept = b"".join(file.read_bytes() for file in guarded.server.outputs.rglob("*") if file.is_file())
    for key in (ALICE, BOB, ROOT_KEY, SLOW, LATER):
        assert not any(key in text for text in told)
        assert key.encode() not in kept


def test_neither_a_key_in_the_wrong_place_nor_a_prompt_is_logged(guarded: Guarded) -> None:
    nobodys = f"sk-nobody-{'x' * 16}"  # the database keeps it, with the job: none of those that must not be there
    wrong: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", f"/jobs?api_key={ALICE}", {}),
        ("GET", f"/outputs/x.png?expires=1&signature={ALICE}", {}),
        ("GET", f"/nowhere/{ALICE}", {}),
        ("POST", f"/loras/{ALICE}", {}),
        ("GET", "/jobs", {"headers": {"X-Api-Key": ALICE}}),
        ("GET", "/jobs", {"headers": {"Authorization": f"Basic {ALICE}"}}),
        ("GET", "/jobs", {"headers": {"Authorization": ALICE}}),
        ("POST", "/jobs", {"headers": {"Idempotency-Key": f"{nobodys} "}, "json": {"prompt": PROMPT}}),
        ("POST", "/generate", {"json": {"prompt": PROMPT, ALICE: 1}}),
    ]
    for method, path, options in wrong:
        key = None if "Authorization" in options.get("headers", {}) else ROOT_KEY
        guarded.ask(method, path, key, **options)
    prompt = "a zebra that nobody may read of"
    for extra in ({"prompt_2": [prompt]}, {"sigmas": prompt}, {"latents": prompt}, {"prompt_2": prompt, "x": prompt}):
        refused = guarded.ask("POST", "/generate", ALICE, json={"prompt": prompt, "extra_args": extra})
        assert refused.status_code == 400
    told = [guarded.server.log(), guarded.ask("GET", "/metrics", None).text]
    told.append(guarded.ask("GET", "/log/warnings", ROOT_KEY).text)
    assert not any(secret in text for text in told for secret in (ALICE, nobodys, prompt))


def test_many_at_once_are_each_their_own(guarded: Guarded) -> None:
    statuses: dict[str, set[int]] = {ALICE: set(), "sk-nobody-at-all-here": set(), BOB: set()}

    def ask(key: str) -> None:
        for _ in range(20):
            statuses[key].add(guarded.ask("GET", "/jobs", key).status_code)

    threads = [threading.Thread(target=ask, args=(key,)) for key in statuses for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(statuses.values()) == [{200}, {401}, {200}]


def test_a_browser_follows_a_job_by_its_signed_route(guarded: Guarded) -> None:
    job = guarded.job(ALICE, seed=5)
    route = guarded.ask("GET", job, ALICE).json()["events"]
    followed = guarded.ask("GET", route, None)
    assert followed.status_code == 200
    assert "event: result" in followed.text
    other = guarded.job(BOB, seed=5)
    query = route.partition("?")[2]
    later = route.replace("expires=", "expires=9")
    for forged in (f"{job}/events", f"{other}/events?{query}", later, f"{job}?{query}"):
        refused = guarded.ask("GET", forged, None)
        assert refused.status_code == 401, forged
    assert guarded.ask("GET", f"{other}/events?{query}", ALICE).status_code == 404


def test_pages_of_a_listed_origin_use_the_server(guarded: Guarded) -> None:
    """Preflight without a key, errors and streams included."""
    origin = {"Origin": STUDIO}
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    allowed = guarded.ask("OPTIONS", "/v1/images/generations", None, headers=origin | preflight)
    assert allowed.status_code == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == STUDIO
    assert "x-stainless-lang" in allowed.headers["Access-Control-Allow-Headers"]
    refused = guarded.ask("OPTIONS", "/generate", None, headers={"Origin": "https://elsewhere.example"} | preflight)
    assert "Access-Control-Allow-Origin" not in refused.headers
    job = guarded.job(ALICE, seed=5)
    for method, path, key, status in (
        ("POST", "/generate", None, 401),
        ("POST", "/generate", ALICE, 400),
        ("GET", "/nowhere", ALICE, 404),
        ("GET", f"{job}/events", ALICE, 200),
        ("GET", "/health", None, 200),
    ):
        answer = guarded.ask(method, path, key, headers=origin)
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (status, STUDIO), path
