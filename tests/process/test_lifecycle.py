"""A server's life over real processes: loading, busy, clients that leave, failing loads, SIGTERM."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import psutil
import pytest
import requests
from PIL import Image

from cache_dit_serving import preflight
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.config.variables import OVERRIDE_PREFIX
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from tests.support.answers import metric
from tests.support.clients import leave, start
from tests.support.folders import LFS, WEIGHTS, linked, replace, sharded
from tests.support.forked import environment, warm_process
from tests.support.jobs import LONG
from tests.support.processes import workers
from tests.support.server import ROOT, START_S, Server, bentoml_serving, idle, options, ready, serving, supervised

SECOND: dict[str, Any] = LONG | {"num_images": 1}
"""One that is drawn to its end."""


@pytest.fixture(scope="module")
def small_queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that lets two generations wait, and draws without a cache so that a generation lasts."""
    with serving(
        tmp_path_factory.mktemp("small"), environ=options(SERVER__WARM_UP=False, LIMITS__MAX_QUEUE=2, CACHE=None)
    ) as server:
        server.wait_for(ready)
        yield server


@dataclass
class Began:
    """A server with its supervisor, ready, and what it answered before."""

    server: Server
    health: requests.Response
    refused: dict[str, requests.Response]
    """By route; `again` is a job with a key."""
    told: set[str]
    """By /health, from the first answer to readiness."""


@pytest.fixture(scope="module")
def began(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Began]:
    folder = tmp_path_factory.mktemp("whole")
    model = shutil.copytree(EMBEDDED_FOLDER, folder / "secret-customer" / "model")
    variables = {"CACHE_DIT_SERVING_CONFIG": "embedded", "CACHE_DIT_SERVING__MODEL__PATH": str(model)}
    with supervised(folder, environ=variables) as server:
        server.wait_for(lambda server: server.get("/livez").status_code == 200)
        health = server.get("/health", timeout=60)
        body = {"prompt": "a red apple"}
        refused = {
            "/readyz": server.get("/readyz"),
            "/generate": server.generate(),
            "/jobs": server.post("/jobs", json=body),
            "again": server.post("/jobs", json=body, headers={"Idempotency-Key": "again"}),
            "/flush_cache": server.post("/flush_cache"),
            "/get_model_info": server.get("/get_model_info"),
        }
        told: set[str] = set()

        def loaded(server: Server) -> bool:
            told.add(server.get("/health").text)
            return ready(server)

        server.wait_for(loaded)
        yield Began(server, health, refused, told)


@pytest.fixture
def whole(began: Began) -> Server:
    return began.server


def queue_of(server: Server) -> dict[str, int]:
    queue: dict[str, int] = server.get("/health").json()["queue"]
    return queue


def cancelled(server: Server) -> float:
    """Generations that were stopped before their last step."""
    return metric(server, "cache_dit_serving_generations_total", outcome="cancelled")


def test_a_full_queue_answers_429_with_the_time_to_come_back(small_queue: Server) -> None:
    with contextlib.closing(leave(small_queue, **LONG)):
        small_queue.wait_for(lambda server: queue_of(server)["step"] > 10)
        waiting = [start(small_queue, num_inference_steps=2, seed=seed) for seed in (1, 2)]
        small_queue.wait_for(lambda server: queue_of(server)["waiting"] == 2)
        refused = small_queue.generate(num_inference_steps=2)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        assert 1 <= int(refused.headers["Retry-After"]) <= 600
    assert [future.result(180).status_code for future in waiting] == [200, 200]
    assert small_queue.generate(num_inference_steps=2).status_code == 200


def test_health_info_and_metrics_answer_while_the_pipeline_is_busy(small_queue: Server) -> None:
    running = start(small_queue, **SECOND)
    small_queue.wait_for(lambda server: queue_of(server)["running"] == 1)
    for path in ("/livez", "/readyz", "/health", "/get_model_info", "/metrics", "/docs"):
        assert small_queue.get(path, timeout=60).status_code == 200
    flushed = small_queue.post("/flush_cache", timeout=180)  # waits its turn
    assert flushed.status_code == 200
    assert not queue_of(small_queue)["running"]
    assert running.result(180).status_code == 200


def test_a_generation_stops_between_steps_when_its_client_has_gone(small_queue: Server) -> None:
    expected = small_queue.generate(seed=1, num_inference_steps=4).json()["images"]
    stopped = cancelled(small_queue)
    connection = leave(small_queue, **LONG)
    small_queue.wait_for(lambda server: queue_of(server)["step"] > 5)
    connection.close()
    small_queue.wait_for(idle)
    assert cancelled(small_queue) == stopped + 1, "the generation ran to its end"
    assert small_queue.generate(seed=1, num_inference_steps=4).json()["images"] == expected


def test_a_waiting_generation_leaves_the_queue_when_its_client_has_gone(small_queue: Server) -> None:
    stopped = cancelled(small_queue)
    with contextlib.closing(leave(small_queue, **LONG)):
        small_queue.wait_for(lambda server: queue_of(server)["running"] == 1)
        connection = leave(small_queue, **LONG)
        small_queue.wait_for(lambda server: queue_of(server)["waiting"] == 1)
        connection.close()
        small_queue.wait_for(lambda server: queue_of(server)["waiting"] == 0)
        assert queue_of(small_queue)["running"] == 1
    small_queue.wait_for(idle)
    assert cancelled(small_queue) == stopped + 1, "the one that waited has begun"


def test_a_request_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    with serving(tmp_path, environ=options(SERVER__WARM_UP=False, LIMITS__MAX_REQUEST_S=1.5, CACHE=None)) as server:
        server.wait_for(ready)
        answer = server.generate(**LONG)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        server.wait_for(lambda server: server.generate(num_inference_steps=1).status_code == 200)


def test_concurrent_requests_get_the_pictures_they_get_alone(whole: Server) -> None:
    cases = [{"seed": seed, "num_inference_steps": 4 + seed, "width": (80, 96, 112)[seed % 3]} for seed in range(8)]
    alone = [whole.generate(**case).json()["images"] for case in cases]
    with ThreadPoolExecutor(8) as pool:
        body = {"prompt": "a red apple on a blue background"}
        together = list(pool.map(lambda case: requests.post(f"{whole.url}/generate", json=body | case).json(), cases))
    assert [answer["images"] for answer in together] == alone


def test_a_server_answers_while_it_loads_then_says_where_to_look(began: Began, tmp_path: Path) -> None:
    assert began.health.status_code == 503
    assert "Retry-After" in began.health.headers
    assert {answer.status_code for answer in began.refused.values()} == {503}
    for answer in (began.health, *(began.refused[name] for name in ("/generate", "/jobs", "again"))):
        assert answer.json()["error"]["code"] == "loading"
        assert "loading" in answer.json()["error"]["message"]
    assert any("loading the weights of model" in text for text in began.told)
    server = began.server
    assert "secret-customer" not in "".join(began.told) + server.get("/get_model_info").text
    server.wait_for(lambda server: "curl" in server.log())
    log = server.log()
    command = log[log.index("curl") :].partition("\n\n")[0]
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, timeout=120)
    with Image.open(tmp_path / "apple.png") as picture:
        assert picture.size == (96, 96)
    for words in ("importing torch", "loading the weights", "warming up", f"{server.url.rpartition(':')[2]}/docs"):
        assert words in log


def test_a_failed_load_is_visible_and_does_not_start_over(tmp_path: Path) -> None:
    model = shutil.copytree(EMBEDDED_FOLDER, tmp_path / "secret-customer" / "model")
    weights = next((model / "transformer").glob("*.safetensors"))
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-1000])
    with serving(tmp_path, CACHE_DIT_SERVING__MODEL__PATH=str(model)) as server:
        server.wait_for(lambda server: server.get("/health").json()["error"]["code"] == "failed")
        answer = server.generate()
        assert answer.status_code == 503
        reason = f"transformer/{weights.name}: the file is damaged: {size - 1000} of {size} bytes are there; download"
        assert reason in answer.text
        assert server.get("/health").json()["error"]["message"] == f"the model cannot be served: {reason} it again"
        assert "secret-customer" not in answer.text
        assert "Retry-After" not in answer.headers
        assert server.get("/readyz").status_code == 503
        assert server.get("/livez").status_code == 200
        log = server.log()
        assert log.count("importing torch") == 1
        assert f"failed: {reason}" in log
        assert "Traceback" not in log


def test_a_server_whose_model_cannot_be_loaded_ends_where_it_should(tmp_path: Path) -> None:
    variables = {"CACHE__FN_COMPUTE_BLOCKS": "100", "SERVER__ON_LOAD_FAILURE": "exit", "SERVER__WORKERS": "2"}
    with supervised(tmp_path, environ=options(**variables)) as server:
        assert server.process.wait(START_S) == 3
        log = server.log()
        assert "failed: cache: Fn_compute_blocks 100 + Bn_compute_blocks 0 is more than the 12 blocks" in log
        assert "ended with exit status 3; the server ends" in log
        assert "another one starts" not in log
        assert "Traceback" not in log


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        (
            {"MODEL__PATH": "/no/such/folder"},
            "model.path '/no/such/folder': the model's path is neither a folder or file on",
        ),
        ({"MODEL__DEVICE": "cuda:9"}, "device 'cuda:9' is not available here"),
        ({"MODEL__PATH": "Qwen/Qwen-Image"}, "model.path 'Qwen/Qwen-Image' is neither a folder here nor in the hub's"),
    ],
)
def test_what_can_be_known_without_loading_is_refused(
    variables: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", "http://127.0.0.1:9")
    monkeypatch.setattr(subprocess, "run", in_this_process)
    for key, value in variables.items():  # the program that looks at the device reads the environment
        monkeypatch.setenv(f"{OVERRIDE_PREFIX}{key}", value)
    with pytest.raises(ConfigError, match=re.escape(reason)):
        preflight.check(load_settings(os.environ))


def in_this_process(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a module's `main` here, where torch is imported."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = importlib.import_module(words[-1]).main()
    return subprocess.CompletedProcess(words, status, said.getvalue())


def test_what_can_be_known_without_loading_ends_the_start(tmp_path: Path) -> None:
    with supervised(tmp_path, CACHE_DIT_SERVING__QUANTIZE__QUANT_TYPE="nvfp4") as server:
        assert server.process.wait(START_S) == 2
        log = server.log()
        assert "error: quantize: nvfp4 does not run on cpu; usable here: " in log
        assert "Traceback" not in log
        assert "importing torch" not in log


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (
            lambda folder: sharded(folder / "transformer")[1].unlink(),
            f"transformer/{WEIGHTS}-00002-of-00002.safetensors is not there, but {WEIGHTS}.safetensors.index.json",
        ),
        (
            lambda folder: replace(folder / "vae" / f"{WEIGHTS}.safetensors", LFS),
            f"vae/{WEIGHTS}.safetensors: it is a Git LFS pointer in place of the file: run `git lfs pull` where",
        ),
    ],
    ids=["bentoml serve", "launcher"],
)
def test_a_broken_folder_ends_the_start(
    broken: Callable[[Path], object], words: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = linked(tmp_path / "model")
    broken(folder)
    by_launcher = request.node.callspec.id == "launcher"
    program = ["cache_dit_serving.serve", "--model-path", str(folder)] if by_launcher else None
    variables = {} if by_launcher else {"CACHE_DIT_SERVING__MODEL__PATH": str(folder)}
    with supervised(tmp_path, program, environ=variables) as server:
        assert server.process.wait(START_S) == 2
        log = server.log()
        assert f"error: model.path '{folder}': {words}" in log
        assert "Traceback" not in log
        assert "importing torch" not in log


def test_a_mistake_in_the_configuration_ends_the_start(tmp_path: Path) -> None:
    # Not forked: imports that warn would say more than the line.
    with bentoml_serving(tmp_path, CACHE_DIT_SERVING__LIMITS__MAX_QUEU="3") as server:
        assert server.process.wait(START_S) == 2
        [line] = server.log().splitlines()
        assert "did you mean 'max_queue'?" in line


def worker_of(server: Server) -> psutil.Process:
    [worker] = workers(server.process.pid)
    return worker


def test_a_killed_worker_is_named_in_the_log_and_leaves_no_gauge(whole: Server) -> None:
    running = [start(whole, **LONG) for _ in range(4)]
    whole.wait_for(lambda server: "cache_dit_serving_queue_waiting 3.0" in server.get("/metrics").text)
    killed = worker_of(whole)
    killed.kill()
    for request in running:
        assert isinstance(request.exception(120), requests.ConnectionError)
    whole.session.close()
    # The supervisor holds the port: a request waits in its backlog for as long as the new worker takes to start.
    whole.wait_for(lambda server: server.get("/readyz", timeout=START_S).status_code == 200)
    assert f"worker {killed.pid} was ended by SIGKILL" in whole.log()
    metrics = whole.get("/metrics").text.splitlines()
    assert "cache_dit_serving_queue_waiting 0.0" in metrics
    in_progress = 'bentoml_service_request_in_progress{endpoint="/generate"'
    assert all(line.endswith(" 0.0") for line in metrics if line.startswith(in_progress))


def test_nothing_but_the_http_port_is_listened_on(whole: Server) -> None:
    supervisor = psutil.Process(whole.process.pid)
    listening = {
        connection.laddr.port
        for process in (supervisor, *supervisor.children(recursive=True))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {int(whole.url.rpartition(":")[2])}


def test_the_supervisors_sockets_lie_in_a_private_folder(whole: Server) -> None:
    bound = [each.laddr for each in psutil.Process(whole.process.pid).net_connections("unix")]
    (folder,) = {Path(str(path)).parent for path in bound if "cache-dit-serving-" in str(path)}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {file.name for file in folder.iterdir()} == {"control", "events", "metrics"}


def just_started(server: Server) -> bool:
    return bool(workers(server.process.pid))


def imports_torch(server: Server) -> bool:
    return any("libtorch" in path for path in mapped(server))


@pytest.mark.parametrize(("begin", "reached"), [(supervised, just_started), (bentoml_serving, imports_torch)])
def test_a_supervisor_killed_while_its_worker_starts_leaves_nothing(
    begin: Callable[[Path], AbstractContextManager[Server]], reached: Callable[[Server], bool], tmp_path: Path
) -> None:
    with begin(tmp_path) as server:
        server.wait_for(reached)
        worker = worker_of(server)
        server.process.kill()
        worker.wait(START_S)
        with socket.create_server(("127.0.0.1", int(server.url.rpartition(":")[2]))):
            pass


def mapped(server: Server) -> list[str]:
    """Files that the worker has in its memory; none before there is a worker."""
    try:
        for child in psutil.Process(server.process.pid).children():
            if "_bentoml_impl.worker.service" in child.cmdline():  # BentoML's imports start other programs, too
                return [each.path for each in child.memory_maps()]
    except psutil.NoSuchProcess:
        pass
    return []


BENTOML, LAUNCHER = ["bentoml", "serve", "service:CacheDiTServing"], ["cache_dit_serving.serve", "--config", "embedded"]


@pytest.mark.parametrize(
    ("command", "port", "words"),
    [
        (BENTOML, "99999", "between 0 and 65535"),
        (BENTOML, "busy", "Address already in use"),
        (LAUNCHER, "-1", "between 0 and 65535"),
        (LAUNCHER, "busy", "Address already in use"),
    ],
)
def test_a_port_that_cannot_be_listened_on_is_said_in_one_line(
    command: list[str], port: str, words: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if port == "busy":
            port = str(taken.getsockname()[1])
        program, errors = [*command, "--host", "127.0.0.1", "--port", port], tmp_path / "errors"
        process = warm_process().fork(
            program=program, environ=environment(), cwd=ROOT, log=tmp_path / "log", errors=errors
        )
        assert process.wait(START_S) == 2
    assert errors.read_text().count("\n") == 1
    assert words in errors.read_text()


def test_sigterm_while_loading_ends_at_once(tmp_path: Path) -> None:
    with supervised(tmp_path) as server:
        server.wait_for(lambda server: server.get("/livez").status_code == 200)
        assert server.get("/health").json()["error"]["code"] == "loading"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        server.log().index("ending while the model loads")


def test_a_pipeline_that_stands_still_fails_its_liveness_probe(tmp_path: Path) -> None:
    # No step of the model is as short: each counts as hung until the next one begins.
    with serving(tmp_path, environ=options(SERVER__WARM_UP=False, LIMITS__MAX_STEP_S=0.002, CACHE=None)) as server:
        server.wait_for(ready)
        assert server.get("/livez").status_code == 200
        with contextlib.closing(leave(server, **LONG)):  # each step writes the stack into the log
            server.wait_for(lambda server: server.get("/livez").status_code == 503)
        # The probe fails at once; the log has the stack, which takes a moment.
        stands_still = "the pipeline stands still for 0.002 s: /livez fails"
        server.wait_for(lambda server: stands_still in server.log())
        server.wait_for(lambda server: server.get("/livez").status_code == 200)
        assert server.generate(num_inference_steps=2).status_code == 200
