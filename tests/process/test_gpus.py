"""Which GPUs each worker sees."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from cache_dit_serving.config.settings import Settings
from cache_dit_serving.gpus import VISIBLE, share_of, take_share
from tests.support.server import supervised


@pytest.mark.parametrize(
    ("workers", "per_worker", "visible", "shares", "shared"),
    [
        (2, 1, "0,1", ["0", "1"], False),
        (2, 2, "0,1,2,3", ["0,1", "2,3"], False),
        (2, 1, "6, 7", ["6", "7"], False),
        (3, 1, "GPU-aa,GPU-bb", ["GPU-aa", "GPU-bb", "GPU-aa"], True),
        (2, 2, "5", ["5", "5"], True),
        (2, 2, "", ["0,1", "2,3"], False),
        (1, 2, "0,1", ["0,1"], False),
    ],
)
def test_gpus_are_dealt_out(workers: int, per_worker: int, visible: str, shares: list[str], shared: bool) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    dealt = [share_of(worker, workers, per_worker, environ) for worker in range(workers)]
    assert [share.visible for share in dealt] == shares
    assert all(share.shared is shared for share in dealt)


def said(log: str) -> list[tuple[str, str]]:
    return sorted(re.findall(r"worker (\d) of 2 has CUDA_VISIBLE_DEVICES=(\S+)", log))


@pytest.mark.parametrize(
    ("environ", "seen"),
    [
        ({}, ["0,1", "2,3"]),  # BentoML's: as many as the service asks for, also where there are none
        ({"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, ["4,5", "6,7"]),
    ],
)
def test_each_worker_has_gpus_of_its_own(environ: dict[str, str], seen: list[str], tmp_path: Path) -> None:
    two = {"CACHE_DIT_SERVING__SERVER__WORKERS": "2", "CACHE_DIT_SERVING__SERVER__GPUS_PER_WORKER": "2"}
    with supervised(tmp_path, environ=two | environ) as server:
        server.wait_for(lambda server: len(said(server.log())) == 2)
        assert [each for _, each in said(server.log())] == seen


@pytest.mark.parametrize("worker", [1, 2])
def test_a_device_of_choice_is_left_as_it_is(worker: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "6,7")
    settings = Settings.model_validate({"model": {"device": "cpu"}, "server": {"workers": 2}})
    take_share(settings, worker)
    assert os.environ[VISIBLE] == "6,7"
    take_share(settings.model_copy(update={"model": settings.model.model_copy(update={"device": None})}), worker)
    assert os.environ[VISIBLE] == str(5 + worker)
