"""Reload through the engine: the version in answers, in the evidence of quality, and while the model sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from cache_dit_serving.api.evidence_headers import evidence_headers
from cache_dit_serving.config.settings import ServerSettings, Settings
from cache_dit_serving.engine.caller import Caller
from cache_dit_serving.engine.engine import Engine
from cache_dit_serving.engine.intake import Intake
from cache_dit_serving.engine.models import Models
from cache_dit_serving.errors import InvalidRequest, NotFound
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.pipeline import sleeping
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from cache_dit_serving.pipeline.protocol import WeightsChoice
from cache_dit_serving.schemas.openai import Evidence
from cache_dit_serving.schemas.request import GenerateRequest, ReloadRequest
from tests.support.in_process import EMBEDDED, load, unwarmed
from tests.support.waiting import wait_until

FILE = "diffusion_pytorch_model.safetensors"
STEP = WeightsChoice("step-1", None)


def with_folder(root: Path) -> Settings:
    return unwarmed(EMBEDDED.model_copy(update={"model": EMBEDDED.model.model_copy(update={"reload_folder": root})}))


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The CPU stands in for the GPU."""
    monkeypatch.setattr(sleeping, "why_not_in_host_memory", lambda device: None)
    (tmp_path / "step-1" / "transformer").mkdir(parents=True)
    tensors = load_file(EMBEDDED_FOLDER / "transformer" / FILE)
    changed = {name: tensor * 1.02 for name, tensor in tensors.items()}
    save_file(changed, tmp_path / "step-1" / "transformer" / FILE)
    settings = with_folder(tmp_path)
    worker = PipelineWorker.alone(lambda progress: load(settings), max_queue=4)
    worker.start()
    wait_until(lambda: worker.state == "ready")
    yield Engine(settings, worker)
    worker.drain()
    assert worker.join(30)


def test_the_version_stands_in_each_answer_after_it_and_survives_a_sleep(engine: Engine) -> None:
    async def asked() -> None:
        request = GenerateRequest(prompt="a cat", seed=1, num_inference_steps=4)
        intake = Intake(request, "one", False, (), (), "http://host", Caller("", ("generate",)))
        before = await engine.generate(intake)
        assert before.weights_version is None
        assert "X-Weights-Version" not in evidence_headers(before)
        await engine.sleep("host")  # the reload wakes the model
        name = engine.model_info().model
        reloaded = await engine.reload(STEP)
        assert (reloaded.model, reloaded.components) == (name, ["transformer"])
        after = await engine.generate(intake)
        assert after.images != before.images
        version = reloaded.weights_version
        assert after.weights_version == Evidence.of(after).weights_version == version
        assert evidence_headers(after)["X-Weights-Version"] == engine.model_info().weights_version == version
        with pytest.raises(InvalidRequest, match="disk: the weights were reloaded, and waking would load those of"):
            await engine.sleep("disk")
        await engine.sleep("host")
        again = await engine.generate(intake)
        assert (again.images, again.weights_version) == (after.images, version)

    asyncio.run(asked())


def test_a_model_of_another_name_and_a_bad_folder_are_refused_by_name(engine: Engine) -> None:
    name = engine.model_info().model
    models = Models([engine])
    assert models.find(name) is models.find(None) is engine
    with pytest.raises(NotFound, match=f"the model 'another' is not served here; there is {name}"):
        models.find("another")
    with pytest.raises(InvalidRequest, match="there is no such folder below") as refused:
        asyncio.run(engine.reload(WeightsChoice("step-2", None)))
    assert refused.value.param == "folder"
    engine.settings = engine.settings.model_copy(update={"server": ServerSettings(workers=2)})
    with pytest.raises(InvalidRequest, match="the others would go on drawing with the old weights"):
        asyncio.run(engine.reload(STEP))
    assert engine.model_info().weights_version is None


@pytest.mark.parametrize("folder", ["../step-1", "/etc", "a/../b", "a//b", ".", "a/", "\\a", ""])
def test_a_folder_that_is_no_plain_name_is_refused_before_it_is_looked_for(folder: str) -> None:
    with pytest.raises(ValidationError):
        ReloadRequest(folder=folder)
