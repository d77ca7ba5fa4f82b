"""What a change of LoRAs between two requests costs: `python -m benchmarks.loras`, about a minute on a quiet core.

Writes docs/benchmarks/loras.md.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.config.settings import LoraSettings
from cache_dit_serving.loras.locate import EMBEDDED_LORAS
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.pipeline.environment import quiet_libraries
from cache_dit_serving.pipeline.lora import LoadedLoras
from cache_dit_serving.pipeline.protocol import Unwatched
from cache_dit_serving.pipeline.runner import PipelineRunner
from cache_dit_serving.planning.loras import LoraChoice
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest

PAGE = BUNDLE_ROOT / "docs" / "benchmarks" / "loras.md"
ROUNDS = 30
TEXT = """\
# What LoRAs cost

Written by `python -m benchmarks.loras` ({date}): the embedded model, with the LoRA that ships with it (rank 4 on 57
layers) under several names, {rounds} rounds in turn, medians.

{machine}

| between two requests | seconds |
|---|---|
| the same LoRAs at the same scales | {same:.4f} |
| another scale | {scale:.4f} |
| another LoRA that is loaded | {other:.4f} |
| none, after one | {none:.4f} |
| one of the folder that is not loaded, in the place of another | {load:.4f} |

| a picture in 28 steps without the cache | seconds |
|---|---|
| on a server without LoRAs | {bare:.3f} |
| with one loaded and not chosen | {idle:.3f} |
| with one | {one:.3f} |
| with two | {two:.3f} |
"""


def seconds(action: Any) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def transitions(loras: LoadedLoras) -> dict[str, float]:
    """Medians of each kind of change, taken in turn."""
    one, weaker, other = ((LoraChoice(name, scale),) for name, scale in (("a", 1.0), ("a", 0.5), ("b", 1.0)))
    taken: dict[str, list[float]] = {}
    for index in range(ROUNDS):
        loras.use(one)
        for kind, choices in (("same", one), ("scale", weaker), ("other", other), ("none", ())):
            taken.setdefault(kind, []).append(seconds(lambda choices=choices: loras.use(choices)))
        cold = (LoraChoice("cd"[index % 2], 1.0),)
        taken.setdefault("load", []).append(seconds(lambda cold=cold: loras.use(cold)))
    return {kind: statistics.median(values) for kind, values in taken.items()}


def main() -> None:
    """Measure, and write the page."""
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        shipped = EMBEDDED_LORAS / "monochrome.safetensors"
        for name in "cd":
            shutil.copy(shipped, Path(folder) / f"{name}.safetensors")
        settings = load_settings({"CACHE_DIT_SERVING__SPEEDS__WARM_UP": "false"})
        loras = tuple(LoraSettings(name=name, path=str(shipped), scale=0.0) for name in "ab")
        with_loras = settings.model_copy(
            update={
                "model": settings.model.model_copy(update={"loras": loras, "lora_folder": Path(folder)}),
                "limits": settings.limits.model_copy(update={"max_loras": 1}),
            }
        )
        bare, loaded = (assemble(each, lambda stage: None) for each in (settings, with_loras))
        pictures: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for kind, server, names in (
                ("bare", bare, ""),
                ("idle", loaded, ""),
                ("one", loaded, "a"),
                ("two", loaded, "ab"),
            ):
                fields: dict[str, Any] = {"prompt": "a robot on a yellow background", "seed": 1, "speed": "lossless"}
                if server is loaded:
                    fields["loras"] = [{"name": name, "scale": 0.5} for name in names]
                call = plan(resolve(GenerateRequest.model_validate(fields), server.model)).call
                taken = seconds(lambda server=server, call=call: server.runner.sample(call, Unwatched()))
                pictures.setdefault(kind, []).append(taken)
        assert isinstance(loaded.runner, PipelineRunner)
        assert loaded.runner._loras is not None
        figures = transitions(loaded.runner._loras)
    figures |= {kind: statistics.median(values) for kind, values in pictures.items()}
    PAGE.write_text(
        TEXT.format(date=datetime.now(UTC).date(), rounds=ROUNDS, machine=machine(), **figures), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
