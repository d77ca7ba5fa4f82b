"""Memory that runs out, as the pipeline's thread meets it; and the most that an output takes."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from cache_dit_serving.config.footprints import footprint_of
from cache_dit_serving.errors import LoadError, OutOfMemory
from cache_dit_serving.pipeline import memory, runner
from cache_dit_serving.pipeline.memory import MemoryUse, is_out_of_memory, memory_advice
from cache_dit_serving.pipeline.protocol import Loaded
from tests.support.in_process import EMBEDDED, draw, held_tensors, load, unwarmed

CPU = torch.device("cpu")
FAILS_FOR_REAL = """
import json, resource
import numpy as np, psutil
from cache_dit_serving.errors import OutOfMemory
from tests.support.in_process import EMBEDDED, draw, load, unwarmed

limits = EMBEDDED.limits.model_copy(update={"sizes": None, "max_side": 4096, "max_pixel_steps": 10**12})
loaded = load(unwarmed(EMBEDDED.model_copy(update={"limits": limits})))
before = draw(loaded, width=256, height=256, num_inference_steps=1).media.array
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 60 * 2**20, -1))
said = []
for _ in range(2):
    try:
        draw(loaded, width=512, height=512, num_inference_steps=1)
    except OutOfMemory as error:
        said.append(error.message)
again = draw(loaded, width=256, height=256, num_inference_steps=1).media.array
side = int(said[0].split("measured here, ")[1].split(" x ")[0])
draw(loaded, width=side, height=side, num_inference_steps=1)
print(json.dumps({"said": said, "same": bool(np.array_equal(again, before))}))
"""


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    """A pipeline of this module's own, whose memory its tests count."""
    return load(unwarmed(EMBEDDED))


@pytest.mark.verified
def test_an_allocation_that_fails_names_a_size_that_would_fit_and_the_next_request_works() -> None:
    run = subprocess.run(
        [sys.executable, "-c", FAILS_FOR_REAL],
        cwd=Path(__file__).parents[2],
        env=os.environ
        | {
            "PYTHONPATH": f"src{os.pathsep}.",
            "OMP_NUM_THREADS": "1",
            # glibc raises this by itself; what is smaller stays in the heap when freed, in pieces that fit nothing.
            "MALLOC_MMAP_THRESHOLD_": str(2**20),
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["same"]
    assert len(result["said"]) == 2
    for sentence in result["said"]:
        assert sentence.startswith("The device ran out of memory on this request; ask for a smaller size. By what was")
        width, height = (int(side) for side in sentence.split("measured here, ")[1].split(" would")[0].split(" x "))
        assert width == height
        assert 64 <= width < 512
        assert width % 64 == 0


def test_at_a_step_it_frees_what_it_held_and_the_next_picture_is_as_before(loaded: Loaded) -> None:
    expected = draw(loaded).media.array

    def fail(done: int) -> None:
        if done == 9:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with pytest.raises(OutOfMemory, match="ran out of memory"):
        draw(loaded, fail)
    held = loaded.runner.memory()
    assert held["cached_activation_bytes"] == held["prompt_cache_bytes"] == 0
    gc.collect()
    assert not held_tensors(loaded)
    assert np.array_equal(draw(loaded).media.array, expected)


def test_the_operator_reads_the_advice_in_the_log_and_the_client_a_size_alone(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "memory_advice", lambda footprint, device: "It fits with model.offload: model.")

    def fail(done: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfMemory) as caught:
        draw(loaded, fail)
    assert "model.offload" not in str(caught.value)
    assert "settings with which this model fits into the memory: It fits with model.offload: model." in caplog.messages


def test_no_tensor_of_the_failed_output_is_held(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.logger, "disabled", True)  # pytest keeps what is logged, with its traceback
    made: list[weakref.ref[Any]] = []

    def fail(done: int) -> None:
        frame: Any = sys._getframe()
        while frame is not None and "latents" not in frame.f_locals:
            frame = frame.f_back
        made.append(weakref.ref(frame.f_locals["latents"]))
        del frame
        raise MemoryError

    with pytest.raises(OutOfMemory):
        draw(loaded, fail)
    gc.collect()
    assert made
    assert made[0]() is None


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for the matmul primitive. Run workload"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_is_out_of_memory(error: Exception, is_it: bool) -> None:
    assert is_out_of_memory(error) is is_it


def test_a_model_that_does_not_fit_fails_the_load_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", fail)
    with pytest.raises(LoadError, match="the model does not fit into memory"):
        load(EMBEDDED)


def test_the_peak_of_an_output_is_that_of_the_output(loaded: Loaded) -> None:
    use, sizes = MemoryUse(CPU), (100, 10)
    peaks = []
    for megabytes in sizes:
        use.begin()
        torch.ones(megabytes * 2**18).sum()
        peaks.append((use.end(1000) or 0) - use._before)
    assert 90e6 < peaks[0] < 130e6
    assert peaks[1] < 40e6
    assert draw(loaded).record.peak_memory_bytes > 50e6  # type: ignore[operator]


def test_a_peak_that_cannot_be_forgotten_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CLEAR_PEAK", memory.CLEAR_PEAK / "nowhere")
    use = MemoryUse(CPU)
    use.begin()
    assert use.end(1000) is None


def test_nothing_is_said_to_fit_before_anything_was_measured_or_where_it_is_no_smaller() -> None:
    use = MemoryUse(CPU)
    assert use.would_fit(1024, 1024, 1024**2) is None
    use._largest = (64 * 64, 1e-3)
    assert use.would_fit(128, 128, 128**2) is None
    use._largest = (64 * 64, 1e9)
    assert use.would_fit(128, 128, 128**2) is None


def test_on_a_gpu_the_advice_names_the_settings_with_which_the_model_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 24 * 10**9))
    flux = footprint_of("black-forest-labs/FLUX.1-dev")
    advice = memory_advice(flux, torch.device("cuda"))
    assert advice is not None
    assert "fits on this device with quantize.quant_type: float8_weight_only" in advice
    assert memory_advice(flux, torch.device("cpu")) is None
    assert memory_advice(None, torch.device("cuda")) is None
    assert flux is not None
    assert memory_advice(replace(flux, not_drawn="an error"), torch.device("cuda")) is None
