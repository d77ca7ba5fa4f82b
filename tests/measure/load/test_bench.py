"""`bench` against servers that take known times."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from cache_dit_serving.cli import bench
from cache_dit_serving.measure.load.results import BenchResult
from tests.support.paced_server import Paced, paced

KEY = "sk-secret-of-the-benchmark"


def run(server: Paced, *flags: str, status: int = 0) -> BenchResult:
    """Results of the command in this process."""
    folder = Path(os.environ["BENCH_TEST_FOLDER"])
    file = folder / "result.json"
    assert bench.main([server.url, "--quiet", "-o", str(file), "--warm-up", "0", *flags]) == status
    return BenchResult.model_validate_json(file.read_bytes())


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_TEST_FOLDER", str(tmp_path))
    monkeypatch.delenv("CACHE_DIT_SERVING_API_KEY", raising=False)


def test_latency_follows_the_users_and_throughput_the_service_time() -> None:
    with paced(service_s=0.02) as server:
        result = run(server, "--concurrency", "1,4", "--requests", "40")
    one, four = result.points
    assert [point.load.label() for point in result.points] == ["1 user", "4 users"]
    assert one.latency["p50"].value >= 0.02
    assert four.latency["p50"].value >= 0.08
    assert one.throughput is not None
    assert four.throughput is not None
    assert max(one.throughput.value, four.throughput.value) <= 1 / 0.02
    assert four.throughput.value == pytest.approx(40 / four.duration_s, rel=0.1)
    assert four.latency["p50"].low <= four.latency["p50"].value <= four.latency["p50"].high
    assert result.server["model"] == "paced"


def test_a_stall_shows_in_all_requests_that_fell_due_during_it_in_an_open_loop() -> None:
    with paced(service_s=0.001, stalls={30: 1.0}) as server:
        (opened,) = run(server, "--rate", "50", "--requests", "150").points
    due = [one for one in opened.samples if opened.samples[30].sent < one.intended < opened.samples[30].sent + 0.6]
    assert len(due) > 15
    assert all(one.latency > 0.35 for one in due)
    with paced(service_s=0.001, stalls={30: 1.0}) as server:
        (closed,) = run(server, "--requests", "150").points
    assert sum(one.latency > 0.9 for one in closed.samples) == 1, "coordinated omission: one latency tells of the stall"


def test_a_bound_in_flight_holds_arrivals_back_and_their_latency_counts_the_wait() -> None:
    with paced(service_s=0.02) as server:
        (point,) = run(server, "--rate", "200", "--requests", "40", "--max-in-flight", "2").points
    assert point.held_back
    assert point.samples[-1].sent - point.samples[-1].intended > 0.3
    assert point.stages["client_wait"].value > 0.1
    assert point.achieved_rate is not None
    assert point.offered_rate is not None
    assert point.achieved_rate < 60 < point.offered_rate


def test_a_duration_ends_a_point() -> None:
    with paced(service_s=0.01) as server:
        (point,) = run(server, "--duration", "0.3", "--concurrency", "2").points
    assert 2 <= point.requests <= 32
    assert 0.3 <= point.duration_s < 30


def test_a_user_who_is_refused_waits_as_long_as_the_server_says() -> None:
    busy = JSONResponse({"error": {"code": "queue_full", "message": "busy\x1b[31m"}}, 429, {"Retry-After": "0.5"})
    with paced(failures={1: busy, 2: Response("<html>", 502)}) as server:
        (point,) = run(server, "--requests", "5").points
    assert [sample.error for sample in point.samples] == [None, "429 queue_full", "502", None, None]
    assert point.samples[2].intended - point.samples[1].ended >= 0.5
    assert point.errors[0].message == "busy [31m"
    assert point.retry_after is not None
    assert point.retry_after.most_s == 0.5


def test_an_answer_that_does_not_come_in_time_is_an_error_of_its_own() -> None:
    with paced(stalls={1: 60.0}) as server:
        (point,) = run(server, "--requests", "2", "--timeout", "1.5").points
    assert [sample.error for sample in point.samples] == [None, "timeout"]


def test_warm_up_counts_nowhere_and_draws_other_seeds() -> None:
    with paced() as server:
        result = run(server, "--requests", "3", "--warm-up", "2")
        assert (result.warm_up, result.points[0].requests, len(server.bodies)) == (2, 3, 5)
        assert [body["seed"] for body in server.bodies] == [0, 1, 1_000_000, 1_000_001, 1_000_002]


@pytest.mark.parametrize(
    ("door", "told"),
    [
        ("generate", {"stages": {"queue": 0.0015, "denoise": 0.004}, "steps": 20, "cached_steps": 5, "prompt_hits": 1}),
        ("file", {"stages": {"queue": 0.0015, "denoise": 0.004}, "steps": 20, "cached_steps": 5}),
        ("jobs", {"stages": {"queue": 0.01, "denoise": 0.02}, "steps": 20, "cached_steps": 5}),
        ("openai", {"stages": {}, "steps": None}),
        ("old", {"stages": {"generate": 0.004}, "steps": None}),
    ],
)
def test_each_door_reads_its_answers(door: str, told: dict[str, Any]) -> None:
    with paced() as server:
        if door == "old":
            server.url += "/old"
        result = run(server, "--door", door, "--requests", "1", "--size", "96x64", "--steps", "8")
    (sample,) = result.points[0].samples
    assert sample.error is None
    assert sample.outputs == 1
    assert {name: getattr(sample, name) for name in told} == told
    body = server.bodies[0]
    if door == "openai":
        assert (body["size"], "width" in body) == ("96x64", False)
    else:
        assert (body["width"], body["height"], body["num_inference_steps"]) == (96, 64, 8)
    assert server.deleted == (["job1"] if door == "jobs" else [])


def test_a_job_that_fails_is_an_error_with_its_code() -> None:
    with paced() as server:
        (point,) = run(server, "--door", "jobs", "--requests", "1", "--field", "prompt=fails", status=1).points
    assert [error.kind for error in point.errors] == ["job failed out_of_memory"]
    assert server.deleted == ["job1"]


def test_several_images_of_openais_route_count_each() -> None:
    with paced() as server:
        flags = ("--door", "openai", "--model", "flux", "--field", "num_images=2", "--requests", "2")
        (point,) = run(server, *flags).points
    assert point.outputs == 4
    assert (server.bodies[0]["n"], server.bodies[0]["model"]) == (2, "flux")


@pytest.mark.parametrize("door", ["generate", "file", "jobs", "openai"])
def test_each_request_names_the_model_unless_its_body_does(door: str) -> None:
    with paced() as server:
        run(server, "--door", door, "--model", "kontext", "--requests", "1")
        run(server, "--door", door, "--model", "kontext", "--field", "model=own", "--requests", "1")
        run(server, "--door", door, "--requests", "1")
    assert {body.get("model") for body in server.bodies} == {"kontext", "own", None}


def test_an_answer_without_an_output_is_no_success() -> None:
    with paced(failures={0: JSONResponse({"images": []}), 1: Response("no JSON")}) as server:
        (point,) = run(server, "--requests", "3").points
    assert [sample.error for sample in point.samples] == ["invalid answer", "invalid answer", None]


def test_the_key_goes_to_the_server_and_into_no_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CACHE_DIT_SERVING_API_KEY", KEY)
    with paced() as server:
        run(server, "--requests", "1", "--html", str(tmp_path / "a.html"))
        run(server, "--requests", "1", "--api-key", KEY + "2")
    assert [headers["authorization"] for headers in server.headers] == [f"Bearer {KEY}", f"Bearer {KEY}2"]
    written = "".join(file.read_text() for file in tmp_path.iterdir()) + "".join(capsys.readouterr())
    assert KEY not in written


def test_a_redirect_is_not_followed() -> None:
    away = Response(status_code=307, headers={"Location": "http://127.0.0.1:1/generate"})
    with paced(failures={0: away}) as server:
        (point,) = run(server, "--requests", "1", status=1).points
    assert point.errors[0].kind == "307"


@pytest.mark.parametrize("status", [401, 503])
def test_a_server_that_refuses_its_description_gets_no_load(status: int, capsys: pytest.CaptureFixture[str]) -> None:
    refused = JSONResponse({"error": {"code": "loading", "message": "the model is loading"}}, status)
    with paced(info=refused) as server:
        assert bench.main([server.url]) == 1
    assert server.bodies == []
    assert f"{status} loading: the model is loading" in capsys.readouterr().err


def test_a_server_of_another_kind_has_no_description() -> None:
    with paced(info=Response("no", 404)) as server:
        assert run(server, "--requests", "1").server == {}


def test_nothing_that_listens_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["http://127.0.0.1:1"]) == 1
    assert "does not answer: no connection" in capsys.readouterr().err


def test_the_report_has_the_figures_and_says_how_to_read_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mix = tmp_path / "mix.yaml"
    mix.write_text("- {name: '<b>draft', body: {}}\n- {name: final, body: {}}\n")
    html = tmp_path / "report.html"
    with paced(failures={3: JSONResponse({"error": {"code": "queue_full", "message": "<i>"}}, 429)}) as server:
        run(server, "--requests", "12", "--concurrency", "1,2", "--mix", str(mix), "--html", str(html))
    shown = capsys.readouterr().out
    assert "coordinated omission" in shown
    assert "25.0% of" in shown
    assert "429 queue\\_full" in shown
    assert "\\<b\\>draft" in shown
    page = html.read_text()
    assert page.count('<svg viewBox="0 0 720') == 3
    assert "&lt;b&gt;draft" in page
    assert "<b>draft" not in page
    assert "<i>" not in page


def test_csv_has_a_row_for_each_load_and_the_figures_of_the_results(tmp_path: Path) -> None:
    file = tmp_path / "figures.csv"
    failures = dict.fromkeys(range(6, 12), Response("no", 500))
    with paced(failures=failures) as server:
        result = run(server, "--requests", "6", "--concurrency", "1,2", "--csv", str(file))
    one, two = csv.DictReader(file.read_text().splitlines())
    point = result.points[0]
    assert (one["kind"], one["load"], one["requests"], one["succeeded"]) == ("closed", "1.0", "6", "6")
    assert float(one["latency_p50_s"]) == point.latency["p50"].value
    assert float(one["latency_p50_s_low"]) == point.latency["p50"].low
    assert one["latency_p99_s_high"] == "", "six requests do not bound it"
    assert point.throughput is not None
    assert float(one["throughput"]) == point.throughput.value
    assert float(one["stage_denoise_s"]) == 0.004
    assert (two["succeeded"], two["throughput"], two["latency_mean_s"]) == ("0", "", "")


def test_progress_is_plain_lines_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with paced() as server:
        assert bench.main([server.url, "--requests", "3", "--warm-up", "1"]) == 0
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["warm-up, 1 user", "point 1 of 1, 1 user"]
    assert "\x1b" not in "".join(lines)


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    with paced(stalls={5: 60.0}, reached_at=5) as server:
        words = ["bench", server.url, "--warm-up", "0", "--concurrency", "1,2", "-o", str(file)]
        command = [sys.executable, "-m", "cache_dit_serving.cli.main", *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert server.reached.wait(180)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    result = BenchResult.model_validate_json(file.read_bytes())
    assert (result.interrupted, [point.requests for point in result.points]) == (True, [5])
    assert "Interrupted" in out


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["http://192.0.2.1:3000"], "--yes-remote"),
        (["ftp://localhost"], "URL"),
        (["http://user:password@localhost"], "--api-key"),
        (["http://localhost:99999"], "URL"),
        (["--rate", "1", "--concurrency", "2"], "--rate: excludes"),
        (["--rate", "0"], "--rate: 0"),
        (["--rate", "nan"], "--rate: nan"),
        (["--concurrency", "1,x"], "--concurrency: 1,x"),
        (["--concurrency", "2,2"], "each once"),
        (["--concurrency", "5000"], "--concurrency"),
        (["--size", "96"], "--size: 96"),
        (["--field", "steps"], "--field"),
        (["--mix", "missing.yaml"], "--mix: missing.yaml cannot be read"),
        (["--mix", "missing.yaml", "--steps", "8"], "--mix: excludes"),
        (["--prompts", "missing.txt"], "--prompts: missing.txt cannot be read"),
        (["--seed", "-1"], "--seed"),
        (["--door", "old", "--model", "flux"], "--model: cache_dit.serve has one model"),
        (["--door", "old", "--speed", "fast"], "speed: cache_dit.serve has no such field"),
        (["--door", "openai", "--field", "width=9"], "width, height"),
        (["--door", "file", "--field", "num_images=2"], "num_images"),
        (["--compare", "a", "b", "--csv", "c.csv"], "--csv"),
        (["--csv", "missing/a.csv"], "missing/a.csv cannot be written"),
        (["-o", "missing/result.json"], "missing/result.json cannot be written"),
        (["http://localhost:3000", "--compare", "a", "b"], "URL"),
        (["--compare", "missing.json", "b"], "missing.json cannot be read"),
    ],
)
def test_a_flag_that_cannot_be_honoured_is_named(
    flags: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bench.main(flags) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--requests", "0"], ["--duration", "inf"], ["--door", "x"], ["--max-in-flight", "-1"]]
)
def test_a_number_out_of_bounds_is_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.main(flags)
    assert ended.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_the_command_imports_nothing_of_a_model() -> None:
    code = "import sys, cache_dit_serving.cli.bench; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"torch", "diffusers", "bentoml", "transformers", "cache_dit", "starlette"} & set(ran.stdout.split())


def test_results_are_json_with_a_version() -> None:
    with paced() as server:
        result = run(server, "--requests", "1", "--note", "a laptop")
    value = json.loads(result.model_dump_json())
    assert value["schema_version"] == 1
    assert value["settings"]["note"] == "a laptop"
    assert {"system", "cpu", "cores"} <= set(value["machine"])
