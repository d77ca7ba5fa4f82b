"""What previews cost a generation: `python -m benchmarks.previews`, two minutes on two quiet cores.

Writes docs/benchmarks/previews.md.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from unittest.mock import patch

import requests

from benchmarks.job_events import ASKED, denoise_s
from benchmarks.machine import machine
from benchmarks.serving import server
from cache_dit_serving.config.catalog import BUNDLE_ROOT

PAGE = BUNDLE_ROOT / "docs" / "benchmarks" / "previews.md"
ROUNDS = 12
EVERY = 4
SETTINGS: dict[str, dict[str, str]] = {
    "none": {},
    "projection": {"EVERY": str(EVERY), "BY": "projection"},
    "vae": {"EVERY": str(EVERY), "BY": "vae"},
}
TEXT = """\
# What previews cost

Written by `python -m benchmarks.previews` ({date}): the embedded model, {steps} steps without the cache, 96 x 96 px.
The same job on three servers, without previews and with one every {every} steps by each way, in turn; {rounds} rounds.
One client follows each job by `GET /jobs/{{id}}/events`. Medians of `timings.denoise`, and of its ratio to that
without previews of the same round.

{machine} The cores are shared with other work.

| previews | denoise, s | of that without | middle half of the ratios | previews of a job |
|---|---|---|---|---|
{rows}

The client and the three servers run on the same cores. `projection` copies the latents and leaves the rest to a thread.
`vae` decodes a picture between two steps, on the thread that alone runs the model. For another
model, `timings.decode` of an answer says about what each preview adds.
"""


def followed(url: str) -> tuple[float, int]:
    """Seconds of denoising of a job, and how many previews came."""
    job = requests.post(f"{url}/jobs", json=ASKED, timeout=30).headers["Location"]
    with requests.get(f"{url}{job}/events", stream=True, timeout=60) as answer:
        count = sum(line == b"event: preview" for line in answer.iter_lines())
    return denoise_s(requests.get(url + job, timeout=30).json()["result"]), count


def main() -> None:
    """Measure, and write the page."""
    measured: dict[str, list[tuple[float, int]]] = {name: [] for name in SETTINGS}
    with ExitStack() as stack:
        urls: dict[str, str] = {}
        for name, keys in SETTINGS.items():
            variables = {f"CACHE_DIT_SERVING__PREVIEWS__{key}": value for key, value in keys.items()}
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            variables["CACHE_DIT_SERVING__OUTPUTS__ROOT"] = folder  # or they would share their jobs
            with patch.dict(os.environ, variables):
                urls[name] = stack.enter_context(server()).url
        for url in urls.values():
            followed(url)
        for turn in range(ROUNDS):
            for name in [*SETTINGS][turn % 3 :] + [*SETTINGS][: turn % 3]:
                measured[name].append(followed(urls[name]))
    rows: list[str] = []
    for name, each in measured.items():
        ratios = [seconds / alone for (seconds, _), (alone, _) in zip(each, measured["none"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        seconds = statistics.median(seconds for seconds, _ in each)
        counted = f"{statistics.median(count for _, count in each):.0f}"
        rows.append(f"| {name} | {seconds:.4f} | {middle:.4f} | {low:.4f} to {high:.4f} | {counted} |")
    text = TEXT.format(
        date=datetime.now(UTC).date(),
        steps=ASKED["num_inference_steps"],
        every=EVERY,
        rounds=ROUNDS,
        machine=machine(),
        rows="\n".join(rows),
    )
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
