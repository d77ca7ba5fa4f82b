"""Outputs of a server with a certificate: signed on the encoders' threads, each route's files among them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache_dit_serving.config.settings import OutputSettings
from cache_dit_serving.engine.caller import SCOPES, Caller
from cache_dit_serving.engine.engine import Engine
from cache_dit_serving.engine.inputs import upload_name
from cache_dit_serving.engine.intake import Intake
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.media.c2pa_signer import C2paSigner
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.c2pa_chain import Chain, actions_of, chain_in, read
from tests.support.images import apple, file_of, mask
from tests.support.in_process import EMBEDDED, load
from tests.support.waiting import wait_until


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return chain_in(tmp_path / "chain")


@pytest.fixture
def engine(chain: Chain, tmp_path: Path) -> Iterator[Engine]:
    outputs = OutputSettings(root=tmp_path / "outputs", c2pa=chain.settings)
    loaded = load(EMBEDDED)
    worker = PipelineWorker.alone(lambda progress: loaded, max_queue=2)
    worker.start()
    running = Engine(EMBEDDED.model_copy(update={"outputs": outputs}), worker)
    wait_until(lambda: worker.state == "ready")
    yield running
    running.decoding.close()
    worker.drain()
    worker.join(30)


def test_outputs_are_signed_beside_the_pipelines_thread(
    engine: Engine, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    signed = C2paSigner._signed

    def noted(self: C2paSigner, *arguments: object) -> bytes:
        threads.append(threading.current_thread().name)
        return signed(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(C2paSigner, "_signed", noted)

    def intake(*uploads: bytes, **fields: object) -> Intake:
        request = GenerateRequest.model_validate({"prompt": "a red apple", "seed": 1} | fields)
        return Intake(request, "one", False, (), uploads, "http://host", Caller("", SCOPES))

    async def drawn() -> list[str]:
        made = await engine.generate(intake(num_inference_steps=2, num_images=2))
        assert made.images is not None
        return list(made.images)

    states = [read(base64.b64decode(file), "image/png", chain.root) for file in asyncio.run(drawn())]
    assert {state for state, _ in states} == {"Trusted"}
    assert [actions_of(manifest) for _, manifest in states] == 2 * [[("c2pa.created", "trainedAlgorithmicMedia", [])]]
    assert len(threads) == 2
    assert all(name.startswith("encode") for name in threads)
    compared = asyncio.run(engine.compare(intake(num_inference_steps=10, speed="fast")))
    files = [compared.cached.image, compared.uncached.image, compared.difference]
    assert {read(base64.b64decode(str(file)), "image/png", chain.root)[0] for file in files} == {"Trusted"}
    picture, hole = file_of(apple()), file_of(mask())
    fields = {"image_urls": [upload_name(0)], "mask_url": upload_name(1), "image_format": "jpeg"}
    inpainted = asyncio.run(engine.generate(intake(picture, hole, num_inference_steps=2, **fields)))
    state, manifest = read(base64.b64decode(str((inpainted.images or [])[0])), "image/jpeg", chain.root)
    assert state == "Trusted"
    assert actions_of(manifest) == [
        ("c2pa.opened", None, ["image_urls.0"]),
        ("c2pa.edited", "compositeWithTrainedAlgorithmicMedia", ["mask_url"]),
    ]
    digests = [f"sha256:{hashlib.sha256(file).hexdigest()}" for file in (picture, hole)]
    assert [each["instance_id"] for each in manifest["ingredients"]] == digests
