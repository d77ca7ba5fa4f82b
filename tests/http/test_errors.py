"""Bad input over real HTTP: a clear 4xx in the one shape, and a server as good as before."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

from cache_dit_serving.api.bentoml_stack import adjust_bentoml_stack
from tests.support.answers import check, metric
from tests.support.clients import bare_connection
from tests.support.server import Server

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module", autouse=True)
def _as_good_as_before(server: Server) -> Iterator[None]:
    """Around all of them: a picture, and at the end the same picture."""
    expected = server.generate(seed=1, num_inference_steps=4).json()["images"]
    yield
    assert server.generate(seed=1, num_inference_steps=4).json()["images"] == expected


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({"prompt": " \n"}, "prompt", "empty"),
        ({"prompt": "x" * 100_000}, "prompt", "at most 10,000"),
        ({"prompt": 7}, "prompt", "valid string"),
        ({"prompt": None}, "prompt", "missing"),
        ({"class_label": 3}, "class_label", "does not take class_label"),
        ({"class_label": -1}, "class_label", "0 or more"),
        ({"class_label": 1.5}, "class_label", "its name"),
        ({"prompt": ["a"]}, "prompt", "valid string"),
        ({"width": 0}, "width", "greater than or equal to 1"),
        ({"width": 63}, "width", "80, 96, 112"),
        ({"width": 97}, "width", "80, 96, 112"),
        ({"height": 100_000}, "height", "80, 96, 112"),
        ({"width": "96"}, "width", "valid integer"),
        ({"width": 96.5}, "width", "valid integer"),
        ({"width": True}, "width", "valid integer"),
        ({"num_inference_steps": 0}, "num_inference_steps", "greater than or equal to 1"),
        ({"num_inference_steps": 10**6}, "num_inference_steps", "more than the 100"),
        ({"num_images": 0}, "num_images", "greater than or equal to 1"),
        ({"num_images": 1000}, "num_images", "at most 10"),
        ({"num_images": 8, "num_inference_steps": 100, "width": 112}, "num_images", "in one request"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"seed": 2**53}, "seed", "less than or equal to"),
        ({"seed": 2**200}, "seed", "less than or equal to"),
        ({"seed": 1.5}, "seed", "valid integer"),
        ({"guidance_scale": 3.5}, "guidance_scale", "no guidance embedding"),
        ({"true_cfg_scale": "high"}, "true_cfg_scale", "valid number"),
        ({"negative_prompt": "x"}, "negative_prompt", "true_cfg_scale"),
        ({"sigmas": []}, "sigmas", "at least 1"),
        ({"sigmas": [1.0, "a"]}, "sigmas.1", "valid number"),
        ({"image_format": "gif"}, "image_format", "'png', 'jpeg' or 'webp'"),
        ({"image_quality": 101, "image_format": "jpeg"}, "image_quality", "less than or equal to 100"),
        ({"output_format": "path", "output_dir": "../../etc"}, "output_dir", "relative"),
        ({"output_format": "path", "output_dir": "/etc"}, "output_dir", "relative"),
        ({"output_format": "path", "output_dir": "a/../../b"}, "output_dir", "relative"),
        ({"output_format": "path", "output_dir": "a\x00b"}, "output_dir", "relative"),
        ({"steps": 4}, "steps", "not a field"),
        ({"ip_adapter_image": "a"}, "ip_adapter_image", "IP-Adapter is not supported"),
        ({"textual_inversions": ["a"]}, "textual_inversions", "textual inversion is not supported"),
        ({"extra_args": {"ip_adapter_image": "a"}}, "extra_args.ip_adapter_image", "IP-Adapter is not supported"),
        ({"num_inference_step": 4}, "num_inference_step", "did you mean 'num_inference_steps'?"),
        ({"cache": {"rdt": 0.1}}, "cache.rdt", "not a field"),
        ({"cache": {"fn_compute_block": 1}}, "cache.fn_compute_block", "did you mean 'Fn_compute_blocks'?"),
        (
            {"cache": {"steps_computation_mask": {"compute_bin": [1], "cache_bins": [1]}}},
            "cache.steps_computation_mask.compute_bins",
            "did you mean 'compute_bins'?",
        ),
        ({"image_urls": ["http://localhost/"]}, "image_urls.0", "does not open"),
        ({"num_frames": 16}, "num_frames", "does not take num_frames"),
        ({"max_sequence_length": 0}, "max_sequence_length", "greater than or equal to 1"),
        ({"max_sequence_length": 10**9}, "max_sequence_length", "at most 512 tokens"),
        ({"extra_args": [1]}, "extra_args", "should be an object"),
        ({"last_image_url": "QUJD"}, "last_image_url", "does not take last_image_url"),
        ({"extra_args": {"latents": [0.5]}}, "extra_args.latents", "is set by the server"),
        ({"extra_args": {"seed": 1}}, "extra_args.seed", "is a field of the request by itself"),
        ({"extra_args": {"prompt2": "a"}}, "extra_args.prompt2", "did you mean prompt_2?"),
        ({"extra_args": {"prompt_2": 7}}, "extra_args.prompt_2", "valid string"),
        ({"extra_args": {"prompt_embeds": [[0.5]]}}, "extra_args.prompt_embeds", "is set by the server"),
    ],
)
def test_a_bad_field_is_named(server: Server, fields: dict[str, Any], param: str, words: str) -> None:
    check(server.generate(**fields), 400, param, words)


def test_a_missing_prompt_is_named(server: Server) -> None:
    check(server.post("/generate", json={}), 400, "prompt", "missing")
    check(server.post("/generate"), 400, "prompt", "missing")


def test_several_mistakes_are_all_named(server: Server) -> None:
    check(server.generate(width=0, seed=-1), 400, "seed", "width", "seed")


def test_a_body_that_is_not_json_is_refused(server: Server) -> None:
    check(server.post("/generate", data=b'{"prompt": "a', headers=JSON), 400, None, "not valid JSON")


def test_a_body_with_far_too_much_gets_a_short_answer(server: Server) -> None:
    logged = len(server.log())
    body = b"{" + b",".join(b'"k%d":1' % i for i in range(60_000)) + b"}"
    response = server.post("/generate", data=body, headers=JSON)
    check(response, 400, None, "more values than any request")
    assert len(response.content) < 1_000
    log = server.log()[logged:]
    assert "Traceback" not in log
    assert "ERROR" not in log
    assert len(log) < 2_000


def test_a_callers_fault_is_one_line_of_log_without_its_words(server: Server) -> None:
    logged = len(server.log())
    response = server.generate(prompt="a secret plan", widht=96)
    request_id = response.json()["request_id"]
    server.wait_for(lambda server: request_id in server.log())
    lines = [line for line in server.log()[logged:].splitlines() if request_id in line]
    [line] = lines
    assert " INFO worker-1 " in line
    assert re.search(rf" \[{request_id}\]: POST /generate answered 400 invalid_value in \d+\.\d", line)
    assert "secret" not in server.log()[logged:]


@pytest.mark.parametrize("path", ["/health", "/model_info", "/flush_cache"])
def test_a_route_without_fields_takes_none(server: Server, path: str) -> None:
    assert server.post(path, json={}).status_code == 200
    assert server.post(path).status_code == 200
    check(server.post(path, json={"verbose": True}), 400, "verbose", "not a field")
    check(server.post(path, data=b"{", headers=JSON), 400, None, "not valid JSON")


def test_pickles_are_refused(server: Server) -> None:
    headers = {"Content-Type": "application/vnd.bentoml+pickle"}
    check(server.post("/generate", data=b"\x80\x04N.", headers=headers), 415, None, "application/json")


def test_a_body_of_50_mb_is_refused_by_its_stated_length(server: Server) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", "/generate")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(50 * 2**20))
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["error"]["code"] == "body_too_large"
    connection.close()


@pytest.mark.parametrize(
    ("path", "status", "code"), [("/flush_cache", 413, "body_too_large"), ("/nowhere", 404, "not_found")]
)
def test_a_body_over_the_limit_gets_its_answer_although_it_is_still_being_sent(
    server: Server, path: str, status: int, code: str
) -> None:
    # http.client sends the whole body before it reads a line of the answer.
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    body = b'{"prompt": "' + b"x" * (3 * 2**20) + b'"}'
    for _ in range(2):
        connection.request("POST", path, body=body, headers=JSON)
        response = connection.getresponse()
        assert response.status == status
        assert json.loads(response.read())["error"]["code"] == code
    connection.close()


def test_a_body_of_200_mb_in_chunks_is_refused_before_it_is_read_whole(server: Server) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        yield b'{"prompt": "'
        for _ in range(3200):
            sent += 1
            yield b"x" * 65_536

    # The server may close while the client is still sending.
    with contextlib.suppress(requests.ConnectionError):
        check(requests.post(f"{server.url}/generate", data=chunks(), headers=JSON, timeout=60), 413, None, "bytes")
    assert sent < 800, "the server reads far more than its limit"


def test_an_output_folder_that_is_a_file_is_refused_before_the_work(server: Server) -> None:
    server.outputs.mkdir(parents=True, exist_ok=True)
    (server.outputs / "taken").touch()
    begun = metric(server, "cache_dit_serving_generations_total")
    check(server.generate(output_format="path", output_dir="taken/below"), 400, "output_dir", "a file")
    assert metric(server, "cache_dit_serving_generations_total") == begun


def test_a_body_that_does_not_come_is_given_up(limited: Server) -> None:
    connection = http.client.HTTPConnection(limited.url.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", "/generate")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b'{"prom')
    response = connection.getresponse()
    assert response.status == 408
    assert json.loads(response.read())["error"]["code"] == "body_too_slow"
    connection.close()


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("POST /health HTTP/1.1\r\nContent-Length: 6\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
        ("POST /flush_cache HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 2", "2\r\n{}\r\n0\r\n\r\n"),
        ("GET /livez HTTP/1.1\r\nContent-Length: 0\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
        ("GET /livez HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked", ""),
        ("POST /nowhere HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
        ("POST /flush_cache HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 0", "{}"),
        ("POST /flush_cache HTTP/1.1\r\nContent-Length: 2, 0", "{}"),
        ("POST /flush_cache HTTP/1.1\r\nContent-Length: +2", "{}"),
        ("POST /flush_cache HTTP/1.1\r\nContent-Length: -1", "{}"),
        ("POST /flush_cache HTTP/1.1\r\nTransfer-Encoding: gzip, chunked", "0\r\n\r\n"),
        ("POST /flush_cache HTTP/1.1\r\nTransfer-Encoding: identity", "{}"),
        ("POST /flush_cache HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
        ("POST /flush_cache HTTP/1.1\r\nTransfer-Encoding : chunked", "0\r\n\r\n"),
        ("POST /flush_cache HTTP/1.1\r\nTransfer-Encoding: chunked", "+2\r\n{}\r\n0\r\n\r\n"),
        ("POST /nowhere HTTP/1.1\r\nTransfer-Encoding: chunked", "no size\r\n"),
        ("POST /flush_cache HTTP/1.1\r\nHost: a\r\nContent-Length: 2", "{}"),
    ],
    ids=str.split(
        "length-and-chunks chunks-and-length none-and-chunks with-GET without-row two-lengths two-in-one plus "
        "minus gzip identity chunks-twice blank plus-in-chunk no-chunk two-hosts"
    ),
)
def test_a_request_whose_end_is_doubtful_is_refused_and_ends_its_connection(
    server: Server, head: str, body: str
) -> None:
    """RFC 9112, 6.1 and 6.3: what follows may be the rest of a body that another server has read as a request."""
    logged = len(server.log())
    follows = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with bare_connection(server, 60) as connection:
        connection.sendall(f"{head}\r\nHost: localhost\r\n\r\n{body}{follows}".encode())
        answered = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65_536):
                answered += part
    assert re.findall(rb"HTTP/1\.1 (\d+)", answered) == [b"400"]
    assert "Traceback" not in server.log()[logged:]


def test_a_body_that_breaks_off_in_its_framing_after_the_answer_ends_its_connection(server: Server) -> None:
    logged = len(server.log())
    with bare_connection(server, 60) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 404")
        connection.sendall(b"no size\r\n")
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(65_536):
                pass
    server.wait_for(lambda server: "POST unknown answered 404" in server.log()[logged:])
    assert "Traceback" not in server.log()[logged:]


def test_a_failure_of_the_servers_is_in_its_log_under_the_request_id(server: Server) -> None:
    server.outputs.mkdir(parents=True, exist_ok=True)
    (server.outputs / "gone").symlink_to(server.outputs / "no" / "such")  # a folder that cannot be made
    response = server.generate(output_format="path", output_dir="gone")
    check(response, 500, None, "output folder")
    assert str(server.outputs) not in response.text
    line = f"[{response.json()['request_id']}]: POST /generate answered 500 internal_error"
    server.wait_for(lambda server: line in server.log())
    assert " ERROR " in next(each for each in server.log().splitlines() if line in each)


def test_no_timer_of_bentomls_outlives_its_request() -> None:
    timeout = Middleware(TimeoutMiddleware, timeout=60)
    app = Starlette(middleware=[Middleware(GZipMiddleware), timeout, Middleware(CORSMiddleware)])
    app.middleware_stack = app.build_middleware_stack()
    adjust_bentoml_stack(app)
    layers, layer = [], app.middleware_stack
    while layer := getattr(layer, "app", None):  # type: ignore[assignment]
        layers.append(type(layer))
    assert TimeoutMiddleware not in layers
    assert [kind for kind in layers if kind in (GZipMiddleware, CORSMiddleware)] == [GZipMiddleware, CORSMiddleware]


def test_unknown_routes_and_methods_have_the_same_shape(server: Server) -> None:
    check(server.get("/nowhere"), 404, None, "/docs")
    check(server.get("/generate"), 405, None, "/docs")
    check(server.session.delete(f"{server.url}/health"), 405, None, "/docs")
    assert server.session.delete(f"{server.url}/health").headers["Allow"] == "GET, HEAD, POST"
    assert server.get("/generate").headers["Allow"] == "POST"


def test_a_redirect_does_not_repeat_the_host_that_a_client_named(server: Server) -> None:
    for path, target in (("/", "ui"), ("/ui/", "../ui"), ("/docs/", "../docs")):
        response = server.get(path, headers={"Host": "elsewhere.example"}, allow_redirects=False)
        assert response.status_code == 307
        assert response.headers["Location"] == target


def test_a_request_id_of_the_callers_is_kept_if_it_is_one(server: Server) -> None:
    response = server.post("/generate", json={}, headers={"X-Request-ID": "order-7"})
    assert response.json()["request_id"] == "order-7"
    response = server.post("/generate", json={}, headers={"X-Request-ID": "a b\tc" * 50})
    assert response.json()["request_id"] != "a b\tc" * 50
