"""Exchanges of models that a kill interrupts."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import yaml

from cache_dit_serving.config.variables import CONFIG_VARIABLE
from tests.support.jobs import ended, states, submitted
from tests.support.server import ready, serving

DTYPES = {"first": "float32", "second": "bfloat16"}
"""Models by name, and the type of their weights: the two share none."""
MAX_DEVICE_BYTES = 30_000_000
"""More than either model needs, 24 and 12 MB, and less than both."""
FIELDS = {"seed": 5, "num_inference_steps": 4}
WITHIN_S = 180


def entry(name: str) -> dict[str, Any]:
    """A model of the list, by its name."""
    settings = {"speeds": {"warm_up": False}, "model": {"schedulers": {}, "dtype": DTYPES[name]}}
    return {"name": name, "configuration": "embedded", "settings": settings}


def test_a_server_killed_while_one_model_comes_for_another_draws_the_jobs_of_both_when_it_is_back(
    tmp_path: Path,
) -> None:
    tree = {
        "models": [entry(name) for name in DTYPES],
        "residency": {"max_device_bytes": MAX_DEVICE_BYTES},
        "jobs": {"lease_s": 5},
        "server": {"warm_up": False},
    }
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(tree))
    environ = {CONFIG_VARIABLE: str(tmp_path / "two.yaml")}
    with serving(tmp_path, environ=environ) as server:
        server.wait_for(ready)
        pictures = {name: server.generate(model=name, **FIELDS).json()["images"] for name in DTYPES}
        loads = server.log().count("loading the weights")
        jobs = [submitted(server, model=name, **FIELDS) for name in DTYPES]
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
