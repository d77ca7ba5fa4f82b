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
from tests.support.server import bentoml_serving, ready

TRACE = "0af7651916cd43dd8448eb211c80319c"
KEY = "a-key-of-thirty-two-characters-00"


def test_every_line_of_a_server_is_json_and_leads_to_its_request(tmp_path: Path) -> None:
    keys = json.dumps([{"name": "ci", "key": KEY}])
    with bentoml_serving(
        tmp_path, environ={FORMAT_VARIABLE: "json", "CACHE_DIT_SERVING__SERVER__API_KEYS": keys}
    ) as server:
        server.wait_for(ready)
        server.session.headers["Authorization"] = f"Bearer {KEY}"
        server.session.headers["traceparent"] = f"00-{TRACE}-b7ad6b7169203331-01"
        body = {"prompt": "a red apple", "num_inference_steps": 2}
        assert server.post("/generate", json=body, headers={"X-Request-ID": "mine"}).status_code == 200
        for path in ("/x%0aFAKE%20LINE", "/metrics", "/livez", "/favicon.ico"):
            server.get(path)
    lines = [json.loads(line) for line in server.log().splitlines()]
    assert {line["process"] for line in lines} == {"supervisor", "worker-1"}
    done, answered = [line for line in lines if line.get("request_id") == "mine"]
    assert done["message"].startswith("done: 1 image(s), 2 steps")
    assert (done["caller"], answered["caller"], answered["trace_id"]) == ("ci", "ci", TRACE)
    assert (answered["route"], answered["status"]) == ("/generate", 200)
    assert answered["seconds"] > 0
    # Probes, the scraper's and the browser's own requests leave no line.
    assert [line["route"] for line in lines if "status" in line] == ["/generate", "unknown"]


def test_the_traceback_of_a_decoder_is_a_line_of_the_log() -> None:
    asked = io.BytesIO()
    wire.send(asked, {"bytes": 0})  # what to do is left out
    ended = subprocess.run(
        [sys.executable, "-m", "cache_dit_serving.media.decode.process", str(os.getpid()), str(2**30)],
        input=asked.getvalue(),
        env=os.environ | {FORMAT_VARIABLE: "json"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    [line] = ended.stderr.splitlines()
    assert json.loads(line)["process"] == "decoder"
    assert "KeyError" in json.loads(line)["exception"]
