"""Exchanges of models that a kill interrupts."""

from __future__ import annotations

import base64
from pathlib import Path

import yaml

from cache_dit_serving.config.variables import CONFIG_VARIABLE
from tests.support.jobs import ended, states, submitted
from tests.support.server import ready, serving

ENTRY = {"configuration": "embedded", "settings": {"speeds": {"warm_up": False}, "model": {"schedulers": {}}}}
FIELDS = {"seed": 5, "num_inference_steps": 4}
WITHIN_S = 180


def test_a_server_killed_while_one_model_comes_for_another_draws_the_jobs_of_both_when_it_is_back(
    tmp_path: Path,
) -> None:
    tree = {
        "models": [{"name": "first"} | ENTRY, {"name": "second"} | ENTRY],
        "residency": {"max_device_bytes": 30_000_000},
        "jobs": {"lease_s": 5},
    }
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(tree))
    environ = {CONFIG_VARIABLE: str(tmp_path / "two.yaml")}
    with serving(tmp_path, environ=environ) as server:
        server.wait_for(ready)
        pictures = {name: server.generate(model=name, **FIELDS).json()["images"] for name in ("first", "second")}
        loads = server.log().count("loading the weights")
        jobs = [submitted(server, model=name, **FIELDS) for name in ("first", "second")]
        server.wait_for(lambda server: server.log().count("loading the weights") > loads)
        server.process.kill()
        server.process.wait(60)
    with serving(tmp_path, environ=environ) as server:
        server.wait_for(ready)
        for job in jobs:
            assert states(ended(server, job, WITHIN_S))[-1] == "succeeded"
        drawn = [base64.b64encode(server.get(f"{job}/outputs/0").content).decode() for job in jobs]
        assert [[each] for each in drawn] == list(pictures.values())
        assert server.generate(model="second", **FIELDS).json()["images"] == pictures["second"]
