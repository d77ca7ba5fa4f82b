"""Webhooks reach their receivers, whatever becomes of either side."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.jobs import LONG, PROMPT, ended, submitted
from tests.support.server import Server, free_port, ready, serving

SECRET = f"whsec_{base64.b64encode(bytes(range(32))).decode()}"


@dataclass
class Receiver:
    """A server that refuses the first so many messages, and keeps all."""

    port: int
    refused: int = 0
    got: list[tuple[dict[str, str], str]] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/told"

    def wait(self, count: int) -> list[tuple[dict[str, str], dict[str, Any]]]:
        """So many messages, each of which was signed."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.got) >= count, 60), self.got
        client = openai.OpenAI(api_key="none")
        for headers, body in self.got:
            client.webhooks.verify_signature(body, headers, secret=SECRET)
        return [(headers, json.loads(body)) for headers, body in self.got]

    @contextmanager
    def listening(self) -> Iterator[None]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                with receiver.arrived:
                    receiver.got.append((dict(self.headers), body))
                    receiver.arrived.notify_all()
                self.send_response(500 if len(receiver.got) <= receiver.refused else 204)
                self.end_headers()

            def log_message(self, *words: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()
        server.server_close()


@pytest.fixture
def receiver() -> Receiver:
    return Receiver(free_port())


@pytest.fixture
def environ(receiver: Receiver) -> dict[str, str]:
    return {
        "CACHE_DIT_SERVING__WEBHOOKS__HOSTS": f'["127.0.0.1:{receiver.port}"]',
        "CACHE_DIT_SERVING__WEBHOOKS__NETWORKS": '["127.0.0.0/8"]',
        "CACHE_DIT_SERVING__WEBHOOKS__SECRET": SECRET,
    }


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
        metrics = server.get("/metrics").text
        assert 'cache_dit_serving_webhooks_total{outcome="failed"} 1.0' in metrics
        assert 'cache_dit_serving_webhooks_total{outcome="delivered"} 3.0' in metrics
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
