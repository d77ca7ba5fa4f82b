"""Webhooks reach their receivers, whatever becomes of either side."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.jobs import LONG, PROMPT, ended, submitted
from tests.support.server import UNWARMED, Server, free_port, ready, serving
from tests.support.webhook_receiver import SECRET, Receiver


@pytest.fixture
def receiver() -> Receiver:
    return Receiver(free_port())


@pytest.fixture
def environ(receiver: Receiver) -> dict[str, str]:
    return receiver.environ | UNWARMED


def test_a_job_is_told_of_until_it_is_taken(receiver: Receiver, environ: dict[str, str], tmp_path: Path) -> None:
    with serving(tmp_path, environ=environ) as server:
        server.wait_for(ready)
        with receiver.listening():
            receiver.refused = 1
            job = submitted(server, seed=5, webhook_url=receiver.url)
            (first, message), (second, again) = receiver.wait(2)
            assert message == again
            assert first["webhook-id"] == second["webhook-id"]
            assert int(second["webhook-timestamp"]) >= int(first["webhook-timestamp"])
            assert message["type"] == "job.succeeded"
            told = server.get(job).json()
            assert told.pop("events").startswith(job)
            assert message["data"] == told
            receiver.got.clear()
            receiver.refused = 0

            events = ["running", "cancelled"]
            job = submitted(server, **LONG, webhook_url=receiver.url, webhook_events=events)
            receiver.wait(1)
            server.session.delete(server.url + job)
            assert [told["type"] for _, told in receiver.wait(2)] == ["job.running", "job.cancelled"]
            submitted(server, seed=5)  # one that nobody is told of
            refuses(server, receiver)
        assert SECRET not in server.log()
        for outcome, count in {"failed": 1.0, "delivered": 3.0}.items():  # counted once the receiver has answered
            counted = f'cache_dit_serving_webhooks_total{{outcome="{outcome}"}} {count}'
            server.wait_for(lambda server, counted=counted: counted in server.get("/metrics").text)  # type: ignore[misc]
        assert len(receiver.got) == 2

        # Its receiver is away; the next server tells it.
        job = submitted(server, seed=5, webhook_url=receiver.url)
        ended(server, job)
    receiver.got.clear()
    with receiver.listening(), serving(tmp_path, environ=environ) as server:
        assert [told["data"]["id"] for _, told in receiver.wait(1)] == [job.removeprefix("/jobs/")]


def refuses(server: Server, receiver: Receiver) -> None:
    """What nobody is told at is refused when it is submitted."""
    for url, sentence in (
        ("http://127.0.0.1:1/x", "on a host that this server does not open (webhooks.hosts)"),
        ("ftp://127.0.0.1/", "is not an http or https address"),
        ("http://a:b@127.0.0.1/", "holds a user's name"),
        ("http://[zz]/", "is no address"),
        ("http://xn--/", "is no address"),
        ("", "webhook_url"),
    ):
        refused = server.post("/jobs", json={"prompt": PROMPT, "webhook_url": url})
        assert refused.status_code == 400, url
        assert refused.json()["error"]["param"] == "webhook_url"
        assert sentence in refused.json()["error"]["message"]
    for body in ({"webhook_events": ["running"]}, {"webhook_url": receiver.url, "webhook_events": ["queued"]}):
        assert server.post("/jobs", json={"prompt": PROMPT} | body).status_code == 400
    refused = server.generate(webhook_url=receiver.url)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "webhook_url"
    assert "POST /jobs takes it" in refused.json()["error"]["message"]
