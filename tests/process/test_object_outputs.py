"""A server whose outputs lie in object storage."""

from __future__ import annotations

import json
from pathlib import Path

import requests

from tests.support.jobs import ended, submitted
from tests.support.s3 import BUCKET, CREDENTIALS, s3_server
from tests.support.server import UNWARMED, ready, serving

PNG = b"\x89PNG"


def test_outputs_are_made_fetched_and_deleted_and_the_server_outlives_their_storage(tmp_path: Path) -> None:
    with s3_server(tmp_path) as s3:
        environ = (
            CREDENTIALS
            | UNWARMED
            | {
                "CACHE_DIT_SERVING__OUTPUTS__STORE": f"s3://{BUCKET}/made",
                "CACHE_DIT_SERVING__OUTPUTS__STORE_OPTIONS": json.dumps(s3.options),
            }
        )
        with serving(tmp_path, environ=environ) as server:
            server.wait_for(ready)
            (url,) = server.generate(output_format="url", output_dir="mine").json()["images"]
            picture = requests.get(url, timeout=60)
            assert picture.content.startswith(PNG)
            assert picture.headers["Content-Type"] == "image/png"
            (key,) = s3.names()
            assert key.startswith("made/mine/")

            route = "/outputs/" + key.removeprefix("made/")
            redirect = server.get(route, allow_redirects=False)
            assert (redirect.status_code, redirect.headers["Cache-Control"]) == (307, "no-store")
            followed = server.get(route)
            assert followed.content == picture.content, (followed.url, followed.history, followed.text[:300])
            assert server.get("/outputs/mine/none.png").status_code == 404
            assert f"connect-src 'self' {s3.url};" in server.get("/ui").headers["Content-Security-Policy"]

            refused = server.generate(output_format="path")
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "output_format")

            job = submitted(server, num_images=2)
            answer = ended(server, job)
            assert len(answer["result"]["images"]) == 2
            for image, output in zip(answer["result"]["images"], answer["outputs"], strict=True):
                assert requests.get(image, timeout=60).content.startswith(PNG)
                assert server.get(output).content == requests.get(image, timeout=60).content
            # Signed anew for each answer: the time of signing, in seconds, is part of a URL.
            again: list[str] = answer["result"]["images"]
            server.wait_for(lambda server: server.get(job).json()["result"]["images"] != again)
            told = server.get(f"{job}/events").text
            assert "event: result" in told

            other = submitted(server)
            assert ended(server, other)["state"] == "succeeded"
            assert server.session.delete(server.url + job).status_code == 200
            assert [name for name in s3.names() if job.removeprefix("/jobs/") in name] == []
            assert len(s3.names()) == 2

            s3.stop()
            failed = server.generate(output_format="url")
            assert (failed.status_code, failed.json()["error"]["type"]) == (500, "server_error")
            assert BUCKET not in failed.text
            assert server.get(f"{other}/outputs/0").status_code == 500
            assert server.session.delete(server.url + other).status_code == 500
            assert server.get(other).json()["state"] == "succeeded"
            assert ended(server, submitted(server))["error"]["code"] == "internal_error"
            assert server.generate().status_code == 200
            assert ready(server)
            assert "Traceback" not in server.log()
