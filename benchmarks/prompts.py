"""What a kept prompt saves: `python -m benchmarks.prompts`, half a minute on a quiet core.

Writes docs/benchmarks/prompt-cache.md.
"""

from __future__ import annotations

import statistics
import time
from datetime import UTC, datetime

import numpy as np

from benchmarks.machine import machine
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.pipeline.environment import quiet_libraries
from cache_dit_serving.pipeline.protocol import Loaded, Sampled, Unwatched
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest

PAGE = BUNDLE_ROOT / "docs" / "benchmarks" / "prompt-cache.md"
ROUNDS = 40
TEXT = """\
# What a kept prompt saves

Written by `python -m benchmarks.prompts` ({date}): the embedded model, whose text encoders have 0.4 million
parameters, 28 steps with the cache of the configuration, {rounds} prompts, each drawn twice. Medians.

{machine}

| | encode_prompt, s | whole picture, s |
|---|---|---|
| a prompt that is new | {new:.4f} | {new_whole:.3f} |
| the same prompt again | {again:.4f} | {again_whole:.3f} |

{identical} of {rounds} pairs are bit for bit the same. The bytes that are kept for a prompt: {size:,}. The encoders of
real models have billions of parameters (FLUX: 4.9, Qwen-Image: 8.3); what they take was not measured.
"""


def draw(loaded: Loaded, prompt: str) -> tuple[Sampled, float]:
    call = plan(resolve(GenerateRequest(prompt=prompt, seed=1), loaded.model)).call
    begun = time.perf_counter()
    drawn = loaded.runner.sample(call, Unwatched())
    return drawn, time.perf_counter() - begun


def main() -> None:
    """Measure, and write the page."""
    quiet_libraries()
    loaded = assemble(load_settings({"CACHE_DIT_SERVING__SPEEDS__WARM_UP": "false"}), lambda stage: None)
    loaded.runner.flush()
    pairs = [(draw(loaded, prompt), draw(loaded, prompt)) for prompt in (f"a robot, {i}" for i in range(ROUNDS))]
    new, again = zip(*pairs, strict=True)
    assert all(drawn.record.prompt_hits for drawn, _ in again)
    assert not any(drawn.record.prompt_hits for drawn, _ in new)
    text = TEXT.format(
        date=datetime.now(UTC).date(),
        rounds=ROUNDS,
        machine=machine(),
        new=statistics.median(drawn.record.encode_prompt_s for drawn, _ in new),
        again=statistics.median(drawn.record.encode_prompt_s for drawn, _ in again),
        new_whole=statistics.median(seconds for _, seconds in new),
        again_whole=statistics.median(seconds for _, seconds in again),
        identical=sum(np.array_equal(a[0].media.array, b[0].media.array) for a, b in pairs),
        size=loaded.runner.memory()["prompt_cache_bytes"] // ROUNDS,
    )
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
