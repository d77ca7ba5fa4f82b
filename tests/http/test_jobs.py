"""Jobs over HTTP: from 202 to their outputs, cancelled, failed, expired, listed and forgotten."""

from __future__ import annotations

import base64
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from cache_dit_serving.jobs.store.heart import BEAT_S
from tests.support.images import apple, data_uri, file_of
from tests.support.jobs import LONG, PROMPT, ended, states, submitted
from tests.support.server import Server

pytestmark = pytest.mark.slow

QUICK: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 2}


def test_a_job_draws_what_generate_draws(server: Server) -> None:
    fields = {"seed": 5, "num_images": 2, "num_inference_steps": 8}
    expected = server.generate(**fields).json()
    answer = ended(server, job := submitted(server, **fields))
    assert answer["state"] == "succeeded"
    assert states(answer) == ["queued", "running", "succeeded"]
    assert [moment["at"] for moment in answer["history"]] == sorted(moment["at"] for moment in answer["history"])
    assert answer["step"] == answer["steps"] == expected["cache"]["steps"]
    result = answer["result"]
    assert result["seeds"] == expected["seeds"]
    assert result["cache"]["cached_steps"] == expected["cache"]["cached_steps"]
    assert answer["outputs"] == [f"{job}/outputs/0", f"{job}/outputs/1"]
    for route, url, picture in zip(answer["outputs"], result["images"], expected["images"], strict=True):
        output = server.get(route)
        assert output.headers["content-type"] == "image/png"
        assert output.content == base64.b64decode(picture)
        assert requests.get(url, timeout=60).content == output.content
    assert server.get(f"{job}/outputs/2").json()["error"]["message"] == (
        "there is no such output; this job has 2 output(s), from 0"
    )
    assert server.get(f"{job}/outputs/x").status_code == 404


def test_an_empty_body_is_answered_as_generate_answers_it(server: Server) -> None:
    job, generate = (server.post(route) for route in ("/jobs", "/generate"))
    assert job.status_code == generate.status_code == 400
    assert job.json()["error"] == generate.json()["error"]


def test_a_database_that_is_deleted_refuses_jobs_and_is_said_once(server: Server) -> None:
    file, kept = server.outputs / "jobs.sqlite3", server.outputs.parent / "kept.sqlite3"
    logged = len(server.log())
    kept.hardlink_to(file)
    file.unlink()
    try:
        for _ in range(3):
            refused = server.post("/jobs", json=QUICK)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
            assert int(refused.headers["Retry-After"]) > 0
            time.sleep(BEAT_S)
    finally:
        kept.rename(file)  # the file that the server opened
    server.wait_for(lambda server: server.post("/jobs", json=QUICK).status_code == 202)
    said = server.log()[logged:]
    assert "Traceback" not in said
    reasons = re.findall("(.*): its file was deleted or exchanged", said)
    parts = [reason.rpartition("]: ")[2] for reason in reasons]
    assert sorted(parts) == sorted(set(parts)), said
    assert 1 <= len(parts) <= 3, said


def test_a_form_makes_a_job_too(server: Server) -> None:
    fields = {"prompt": PROMPT, "seed": "1", "strength": "0.5", "num_inference_steps": "4"}
    answer = server.post("/jobs", data=fields, files={"image": file_of(apple())})
    assert answer.status_code == 202, answer.text
    assert ended(server, answer.headers["Location"])["state"] == "succeeded"


def test_where_a_job_stands_while_it_waits_and_runs(server: Server) -> None:
    server.generate(num_inference_steps=8, speed="lossless")  # what such ones take is known then
    first, second = submitted(server, **LONG), submitted(server, **LONG)
    server.wait_for(lambda server: server.get(first).json()["step"] > 2)
    running, waiting = server.get(first).json(), server.get(second).json()
    assert running["state"] == "running"
    assert 2 < running["step"] < running["steps"] == 800
    assert running["seconds_left"] > 0
    assert "position" not in running
    assert waiting["state"] == "queued"
    assert waiting["position"] == 1
    assert waiting["starts_in_s"] > 0
    assert "seconds_left" not in waiting
    assert (
        server.get(f"{second}/outputs/0").json()["error"]["message"].endswith("this job has no outputs: it is queued")
    )
    for job in (second, first):
        assert server.session.delete(server.url + job).json()["state"] == "cancelled"
    assert states(ended(server, second)) == ["queued", "cancelled"]
    assert states(ended(server, first)) == ["queued", "running", "cancelled"]
    assert "error" not in server.get(first).json()
    clean = server.generate(seed=5, num_inference_steps=8).json()["images"]
    assert clean == server.generate(seed=5, num_inference_steps=8).json()["images"]


def test_a_job_that_has_ended_is_forgotten_with_its_files(server: Server) -> None:
    answer = ended(server, job := submitted(server, seed=5, num_inference_steps=2))
    folder = server.outputs / "jobs" / answer["id"]
    assert len(list(folder.iterdir())) == 1
    assert server.session.delete(server.url + job).json()["state"] == "succeeded"
    assert not folder.exists()
    for method in ("get", "delete"):
        assert getattr(server.session, method)(server.url + job).status_code == 404
    assert requests.get(answer["result"]["images"][0], timeout=60).status_code == 404


@pytest.mark.parametrize(
    ("fields", "param", "remedy"),
    [
        ({"width": 97}, "width", "is not a size this model takes"),
        ({"output_format": "base64"}, "output_format", "leave output_format out, or ask for url or path"),
        ({"webhook": "x"}, "webhook", ""),
    ],
)
def test_what_generate_refuses_is_refused_at_once(
    server: Server, fields: dict[str, Any], param: str, remedy: str
) -> None:
    answer = server.post("/jobs", json={"prompt": PROMPT} | fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert remedy in answer.json()["error"]["message"]


def test_a_failure_says_why(server: Server) -> None:
    failed = ended(server, submitted(server, num_inference_steps=4, cache={"strict": True}))
    assert failed["state"] == "failed"
    assert failed["error"]["code"] == "cache_not_engaged"
    assert "result" not in failed


def test_pages_and_states(rich: Server) -> None:
    rich.wait_for(forgets_all)  # of other modules
    jobs = [submitted(rich, **LONG) for _ in range(3)]
    rich.wait_for(lambda rich: rich.get(jobs[0]).json()["state"] == "running")
    full = rich.post("/jobs", json={"prompt": PROMPT})
    assert full.status_code == 429
    assert int(full.headers["Retry-After"]) >= 1
    names = [job.removeprefix("/jobs/") for job in reversed(jobs)]

    def listed(**query: str) -> tuple[list[str], str | None]:
        answer = rich.get("/jobs", params=query).json()
        return [job["id"] for job in answer["jobs"]], answer.get("next")

    assert listed() == (names, None)
    assert listed(limit="2") == (names[:2], names[1])
    assert listed(limit="2", after=names[1]) == (names[2:], None)
    assert listed(state="running") == (names[2:], None)
    assert listed(state="queued", limit="1") == (names[:1], names[0])
    for query, param in (
        ({"limit": "0"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"state": "done"}, "state"),
        ({"after": "x"}, "after"),
        ({"after": "\0"}, "after"),
        ({"after": "a\n\x1b"}, "after"),
        ({"page": "2"}, "page"),
    ):
        assert rich.get("/jobs", params=query).json()["error"]["param"] == param
    for job in jobs:
        rich.session.delete(rich.url + job)
    # Two that have ended are kept, the latest.
    rich.wait_for(lambda rich: len(listed()[0]) == 2)
    assert sum(rich.get(job).status_code == 404 for job in jobs) == 1


def forgets_all(server: Server) -> bool:
    """Forget the jobs that have ended, and cancel the others; whether there are none any more."""
    for job in server.get("/jobs").json()["jobs"]:
        server.session.delete(f"{server.url}/jobs/{job['id']}")
    return bool(server.get("/jobs").json() == {"jobs": []})


def test_a_greater_priority_goes_first(rich: Server, server: Server) -> None:
    running = submitted(rich, **LONG)
    rich.wait_for(lambda server: server.get(running).json()["step"] > 0)
    later, sooner = (submitted(rich, num_inference_steps=2, priority=each) for each in (0, 3))
    assert [rich.get(sooner).json()[name] for name in ("position", "priority")] == [1, 3]
    assert [rich.get(later).json()[name] for name in ("position", "priority")] == [2, 0]
    for priority, places in ((0, [2, 1]), (3, [1, 2])):
        changed = rich.session.patch(rich.url + sooner, json={"priority": priority})
        assert changed.status_code == 200
        assert [changed.json()[name] for name in ("priority", "position")] == [priority, places[0]]
        assert [rich.get(job).json()["position"] for job in (sooner, later)] == places
    assert rich.session.patch(rich.url + running, json={"priority": 1}).json()["error"]["code"] == "job_not_queued"
    rich.session.delete(rich.url + running)
    began = [ended(rich, job)["history"][1]["at"] for job in (sooner, later)]
    assert began == sorted(began)
    for body, status in (({"priority": 1}, 409), ({"priority": 4}, 400), ({"priority": -1}, 400), ({}, 400)):
        refused = rich.session.patch(rich.url + sooner, json=body)
        assert refused.status_code == status, body
        assert refused.json()["error"]["param"] == ("priority" if status == 400 else None)
    for refusing, priority, sentence in (
        (rich, 4, "priority 4 is more than this server's 3"),
        (server, 1, "all requests are equal on this server, by limits.max_priority"),
        (server, -1, "priority"),
    ):
        refused = refusing.generate(priority=priority)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "priority"
        assert sentence in refused.json()["error"]["message"]
    assert server.generate(priority=0, num_inference_steps=2).status_code == 200
    assert rich.get("/capabilities").json()["fields"]["priority"]["maximum"] == 3
    assert "priority" not in server.get("/capabilities").json()["fields"]


def test_the_same_request_with_the_same_key_is_the_same_job(server: Server) -> None:
    def post(key: str, **fields: Any) -> requests.Response:
        return requests.post(f"{server.url}/jobs", json=QUICK | fields, headers={"Idempotency-Key": key}, timeout=60)

    first = post("a-1", seed=5)
    assert "Idempotency-Replayed" not in first.headers
    again = post("a-1", seed=5)
    assert again.status_code == 202
    assert again.headers["Location"] == first.headers["Location"]
    assert again.headers["Idempotency-Replayed"] == "true"
    other = post("a-1", seed=6)
    assert other.status_code == 409
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    assert post("b-1", seed=5).headers["Location"] != first.headers["Location"]
    assert post("x" * 256).status_code == post("no spaces").status_code == 400

    # What was refused has taken no key.
    assert post("c-1", width=97).status_code == 400
    assert post("c-1").status_code == 202

    # Many at once are one, and a form's pictures count.
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post("d-1", image_urls=[data_uri(file_of(apple()))], strength=0.5), range(8)))
    assert len({answer.headers["Location"] for answer in answers}) == 1
    assert post("d-1", image_urls=[data_uri(file_of(apple().rotate(90)))], strength=0.5).status_code == 409
    for answer in (first, post("b-1", seed=5), post("c-1"), answers[0]):
        ended(server, answer.headers["Location"])

    # A job that is forgotten frees its key.
    server.session.delete(server.url + first.headers["Location"])
    assert post("a-1", seed=6).headers["Location"] != first.headers["Location"]


@pytest.mark.parametrize("prefer", ["respond-async", "wait=5, Respond-Async"])
def test_generate_is_a_job_where_the_client_prefers_that(server: Server, prefer: str) -> None:
    headers = {"Prefer": prefer, "Idempotency-Key": prefer.replace(" ", "")}
    for _ in range(2):
        answer = requests.post(f"{server.url}/generate", json=QUICK, headers=headers, timeout=60)
        assert answer.status_code == 202, answer.text
        assert answer.headers["Preference-Applied"] == "respond-async"
        assert answer.headers["content-type"] == "application/json"
    same = requests.post(f"{server.url}/jobs", json=QUICK, headers=headers, timeout=60)
    assert same.headers["Location"] == answer.headers["Location"]  # whichever route it comes by
    assert ended(server, answer.headers["Location"])["state"] == "succeeded"
    assert "Preference-Applied" not in server.generate(num_inference_steps=2).headers
    refused = requests.post(f"{server.url}/generate", json=QUICK | {"width": 97}, headers=headers, timeout=60)
    assert refused.status_code == 409  # another request under the key
