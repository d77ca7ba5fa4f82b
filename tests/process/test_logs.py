"""The log of a whole server: each line of each process is one JSON object."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

from cache_dit_serving.logs import FORMAT_VARIABLE
from cache_dit_serving.media.decode import wire
from tests.support.collector import Collector, SentSpan, collector
from tests.support.server import UNWARMED, bentoml_serving, ready

PARENT = "b7ad6b7169203331"
TRACE = "0af7651916cd43dd8448eb211c80319c"
KEY = "a-key-of-thirty-two-characters-00"


def test_lines_of_a_server_are_json_and_lead_to_the_request_and_its_spans(tmp_path: Path) -> None:
    keys = json.dumps([{"name": "ci", "key": KEY}])
    with (
        collector() as telemetry,
        bentoml_serving(
            tmp_path,
            environ=UNWARMED
            | {
                FORMAT_VARIABLE: "json",
                "CACHE_DIT_SERVING__SERVER__API_KEYS": keys,
                "OTEL_EXPORTER_OTLP_ENDPOINT": telemetry.url,
            },
        ) as server,
    ):
        server.wait_for(ready)
        server.session.headers["Authorization"] = f"Bearer {KEY}"
        server.session.headers["traceparent"] = f"00-{TRACE}-{PARENT}-01"
        body = {"prompt": "a red apple", "num_inference_steps": 2}
        answer = server.post("/generate", json=body, headers={"X-Request-ID": "mine"})
        assert (answer.status_code, answer.headers["X-Trace-ID"]) == (200, TRACE)
        for path in ("/x%0aFAKE%20LINE", "/metrics", "/livez", "/favicon.ico"):
            server.get(path)
    lines = [json.loads(line) for line in server.log().splitlines()]
    assert {line["process"] for line in lines} == {"supervisor", "worker-1"}
    done, answered = [line for line in lines if line.get("request_id") == "mine"]
    assert done["message"].startswith("done: 1 image(s), 2 steps")
    assert (done["caller"], answered["caller"], answered["trace_id"]) == ("ci", "ci", TRACE)
    assert (answered["route"], answered["status"]) == ("/generate", 200)
    assert answered["seconds"] > 0
    spans = {span.name: span for span in telemetry.of_trace(TRACE) if span.attributes.get("request_id") == "mine"}
    assert list(spans) == ["POST /generate"]
    # They are sent as the server ends, at the latest.
    _check_spans(spans["POST /generate"], telemetry)
    # Probes, the scraper's and the browser's own requests leave no line.
    assert [line["route"] for line in lines if "status" in line] == ["/generate", "unknown"]


def _check_spans(request: SentSpan, telemetry: Collector) -> None:
    """Check the spans of a request that drew two steps, and that those of probes are not sent."""
    assert request.parent_id == PARENT
    trace = telemetry.of_trace(TRACE)
    within = {parent.name: [span for span in trace if span.parent_id == parent.span_id] for parent in trace}
    assert {span.name for span in within["POST /generate"]} == {"parse", "queue", "output", "encode_output", "send"}
    assert {span.name for span in within["output"]} == {"encode_prompt", "denoise", "decode"}
    assert [(span.name, span.attributes["step"]) for span in within["denoise"]] == [("step", 0), ("step", 1)]
    # BentoML's span ends with the last byte, before the layer within it is done.
    ended = request.ended + 10**9
    drawn = [span for parent in ("POST /generate", "output", "denoise") for span in within[parent]]
    assert all(request.began - 1000 <= span.began <= span.ended <= ended for span in drawn)
    names = {span.name for span in telemetry.spans}
    assert "GET unknown" in names
    assert not {name for name in names if "livez" in name or "metrics" in name}
    assert telemetry.paths == {"/v1/traces"}


def test_the_traceback_of_a_decoder_is_a_line_of_the_log() -> None:
    asked = io.BytesIO()
    wire.send(asked, {"bytes": 0})  # what to do is left out
    ended = subprocess.run(
        [sys.executable, "-m", "cache_dit_serving.media.decode.process", str(os.getpid()), str(2**30)],
        input=asked.getvalue(),
        env=os.environ | {FORMAT_VARIABLE: "json"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    [line] = ended.stderr.splitlines()
    assert json.loads(line)["process"] == "decoder"
    assert "KeyError" in json.loads(line)["exception"]
