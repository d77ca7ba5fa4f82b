"""A floor that trips on a live server: `python -m benchmarks.live_quality`, about six minutes on two cores.

A server of the embedded model under mixed load, in which requests with one LoRA are bad on purpose at the speed `fast`.
Writes docs/benchmarks/live-quality.md.
"""

from __future__ import annotations

import json
import re
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests

from benchmarks.drifting_lora import WAVES, save_drifting_lora
from benchmarks.floors_simulation import times_to_alarm, times_to_proof
from benchmarks.live_quality_traffic import (
    BAD,
    BALANCED,
    CLIENTS,
    DRIFTING,
    LOSSLESS,
    PAUSE_S,
    PICTURE,
    PROMPTS,
    REPAIRED,
    SHIPPED_LORA,
    WORDS,
    Answer,
    Family,
    Traffic,
    answered,
)
from benchmarks.machine import machine
from benchmarks.serving import server
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.engine.quality import SAMPLE
from cache_dit_serving.jobs.store.database import FILE
from cache_dit_serving.jobs.store.tables import EvidenceRow
from cache_dit_serving.loras.locate import EMBEDDED_LORAS
from cache_dit_serving.measure.evidence.floor_watch import FloorState, FloorWatch
from cache_dit_serving.measure.evidence.samples import Sample
from tests.support.server import options

PAGE = BUNDLE_ROOT / "docs" / "benchmarks" / "live-quality.md"
FLOOR = 0.95
"""Least SSIM of nine in ten outputs of `fast`."""
GOOD_OUTPUTS = 40
"""Outputs of `fast` that are compared before the bad requests come."""
RUNS = 1000
"""Simulated watches for each figure of the theory."""
GOOD: list[Family] = [WORDS, PICTURE, SHIPPED_LORA, BALANCED, LOSSLESS]
BAD_LOAD = [*GOOD, BAD, BAD, BAD]
"""Half of the requests at `fast` have the bad LoRA."""
FAST = (WORDS, PICTURE, SHIPPED_LORA, BAD)
"""Families that ask for `fast`."""
REPAIRED_LOAD = [*GOOD, REPAIRED]
TEXT = """\
# A floor that trips on a live server

Written by `python -m benchmarks.live_quality` ({date}): `bentoml serve` with the embedded model and its own speeds, a
floor of {floor:g} SSIM on `fast`, and every cached output drawn again (`shadow.share: 1`), so that it takes minutes and
not days. {clients} clients send requests of mixed families at random, with pauses of {pause:g} s in the mean, so that
shadow runs find an empty queue: words, img2img and the LoRA `monochrome` at `fast`; words at `balanced` and `lossless`.

{machine}

## The bad family

Requests with the LoRA `{lora}`, made for this page (`benchmarks/drifting_lora.py`). It shifts the inputs of the ten
single blocks by a cosine of the time, {waves} waves over the schedule. Without the cache its pictures are good. The
cache skips those very blocks, and `fast` skips them at steps that are set beforehand; TaylorSeer continues a polynomial
of order 2, which does not follow the waves. The first block, which the cache looks at, has no part in it. SSIM to the
same request at `lossless`:

| requests at `fast` | compared | worst | median | beyond the floor |
|---|---|---|---|---|
{families}

## What happened

| from | to | shadow runs of `fast` | theory | nine in ten within |
|---|---|---|---|---|
| the start | the first bad output compared: no alarm | {good} | a false one in {false_alarm:,.0f} or more | |
| the first bad output compared | the alarm | **{to_alarm}** | {alarm_mean:.0f} | {alarm_decile:.0f} |
| the alarm | the proof that the floor holds again | **{to_proof}** | {proof_mean:.0f} | {proof_decile:.0f} |

{share:.0%} of the outputs to the alarm lie beyond the floor, and {late} of those to the proof. From the alarm on the
clients sent the bad family at `balanced`, as an operator would ask them to. The theory is the mean of {runs:,}
simulated watches ([watched floors](floors.md)): to the alarm at that share, after as many good outputs, and to the
proof at the share there.

| callers saw, until the proof | |
|---|---|
{seen}

| pictures of all three phases, drawn once more by a server without shadow runs | equal in every pixel |
|---|---|
| answers without a warning | {same} of {undisturbed} |
| answers with the warning, drawn there at `balanced` | {lowered_same} of {lowered} |

The shadow runs took {took:.0%} of the pipeline's time. {stopped} of {begun} gave way to a request; {overtaken} outputs
were never compared, since newer ones waited. {answers} pictures were answered in {minutes:.1f} minutes.
"""


@dataclass(frozen=True)
class Watched:
    """Outputs of `fast` in the order in which the server took them, and what its watch made of them."""

    samples: Sequence[Sample]
    first_bad: int
    """Index of the first output of the bad family."""
    alarm: int
    """Index of the output at which the floor counted as missed."""
    proof: int
    """Index of the output at which it counted as held again."""

    def beyond(self, watch: FloorWatch, begin: int, end: int) -> int:
        """Return the number of outputs beyond the floor in a range."""
        return sum(watch.beyond(each) is True for each in self.samples[begin:end])


def watched(samples: Sequence[Sample], bad: frozenset[str], watch: FloorWatch) -> Watched:
    """Return the course of a watch over samples that lead to an alarm and a proof.

    Args:
        bad: ids of the requests of the bad family.
    """
    state, alarm = FloorState(), 0
    for index, sample in enumerate(samples):
        before, state = state.status, watch.take(state, sample)
        if state.status == "missed" != before:
            alarm = index
        if before == "missed" != state.status:
            first_bad = next(index for index, each in enumerate(samples) if each.request in bad)
            return Watched(samples, first_bad, alarm, index)
    raise ValueError("the samples have no alarm, or no proof after it")


def samples_of(database: Path) -> list[Sample]:
    """Return the compared outputs of `fast` in a server's database, in the order in which it took them."""
    query = f"SELECT body FROM {EvidenceRow.__tablename__} WHERE kind = ? ORDER BY number"
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as store:
        bodies = [json.loads(body) for (body,) in store.execute(query, (SAMPLE,))]
    return [Sample(**body) for body in bodies if body["speed"] == "fast"]


def environment(folder: Path, *, share: float) -> dict[str, str]:
    """Return the variables of a server whose files lie in a folder."""
    settings: dict[str, Any] = {
        "OUTPUTS__ROOT": str(folder),
        "MODEL__LORAS": [
            {"name": DRIFTING, "path": str(folder.parent / f"{DRIFTING}.safetensors"), "scale": 0},
            {"name": "monochrome", "path": str(EMBEDDED_LORAS / "monochrome.safetensors"), "scale": 0},
        ],
        "SHADOW__SHARE": share,
        "SHADOW__AT_MOST": 1,
        "SPEEDS__FAST__FLOORS": {"ssim": FLOOR},
    }
    return options(**settings)


class Watching:
    """Looks at the evidence of a server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> Any:
        answer = requests.get(f"{self.url}{path}", timeout=60)
        answer.raise_for_status()
        return answer.json()

    @property
    def compared(self) -> int:
        """Compared outputs of `fast`."""
        return sum(each["outputs"] for each in self.get("/quality")["evidence"] if each["speed"] == "fast")

    @property
    def lowered(self) -> bool:
        return self.get("/quality")["speeds"]["fast"]["lowered_to"] is not None

    def count(self, outcome: str) -> int:
        """Return the number of shadow runs with an outcome."""
        text = requests.get(f"{self.url}/metrics", timeout=60).text
        found = re.search(
            rf'^cache_dit_serving_shadow_runs_total{{.*outcome="{outcome}".*}} (\S+)$', text, re.MULTILINE
        )
        return int(float(found[1])) if found else 0


def seen(watching: Watching) -> dict[str, str]:
    """Return what callers see while the speed is lowered, by where they see it."""
    answer = answered(watching.url, WORDS, prompt=PROMPTS[0], seed=0)
    strict = requests.post(f"{watching.url}/generate", json={**answer.request, "cache": {"strict": True}}, timeout=60)
    fast = next(each for each in watching.get("/capabilities")["speeds"] if each["name"] == "fast")
    figures = f"worst decile {fast['live']['worst_deciles']['ssim']:.3f} SSIM of {fast['live']['outputs']} outputs"
    return {
        "`POST /generate` with `speed: fast`": f"200, drawn at `{answer.speed}`, warning `{', '.join(answer.codes)}`",
        "the same with `cache.strict`": f"{strict.status_code}, code `{strict.json()['error']['code']}`",
        "`GET /capabilities`, the speed `fast`": f"`lowered_to: {fast['lowered_to']}`, `live`: {figures}",
    }


def redrawn(answers: Iterable[Answer], url: str, **changed: Any) -> tuple[int, int]:
    """Return how many answers another server draws equal in every pixel, and how many there are.

    Args:
        changed: fields that it is sent in place of those of the request.
    """
    equal = [answered(url, each.family, **{**each.request, **changed}).pixels == each.pixels for each in answers]
    return sum(equal), len(equal)


def family_rows(samples: Sequence[Sample], families: Mapping[str, Family]) -> Iterator[str]:
    """Yield a row of the table for each family that asks for `fast`.

    Args:
        families: family by the id of the request.
    """
    for family in FAST:
        values = [each.values["ssim"] for each in samples if families.get(each.request) == family]
        beyond = sum(value < FLOOR for value in values)
        yield f"| {family.name} | {len(values)} | {min(values):.4f} | {statistics.median(values):.4f} | {beyond} |"


def main() -> None:
    """Run the servers, print and write the page. Ends with 1 if a picture differs."""
    with tempfile.TemporaryDirectory() as folder:
        outputs, plain = Path(folder) / "outputs", Path(folder) / "plain"
        save_drifting_lora(Path(folder) / f"{DRIFTING}.safetensors")
        began = time.monotonic()
        with server(environment(outputs, share=1)) as running:
            watching, traffic = Watching(running.url), Traffic(running.url)
            traffic.run_until(lambda: watching.compared >= GOOD_OUTPUTS, GOOD)
            traffic.run_until(lambda: watching.lowered, BAD_LOAD)
            callers = seen(watching)
            traffic.run_until(lambda: not watching.lowered, REPAIRED_LOAD)
            minutes = (time.monotonic() - began) / 60
            took = watching.get("/quality")["took"]
            counts = {each: watching.count(each) for each in ("drawn", "stopped", "overtaken")}
        samples = samples_of(outputs / FILE)
        with server(environment(plain, share=0)) as running:
            same, undisturbed = redrawn((each for each in traffic.answers if not each.codes), running.url)
            warned = [each for each in traffic.answers if each.codes]
            lowered_same, lowered = redrawn(warned, running.url, speed="balanced")
    watch = FloorWatch("ssim", FLOOR)
    families = {each.id: each.family for each in traffic.answers}
    bad = frozenset(id for id, family in families.items() if family == BAD)
    course = watched(samples, bad, watch)
    share = course.beyond(watch, course.first_bad, course.alarm + 1) / (course.alarm + 1 - course.first_bad)
    late = course.beyond(watch, course.alarm + 1, course.proof + 1)
    to_alarm = times_to_alarm(share, runs=RUNS, good_outputs=course.first_bad, watch=watch)
    to_proof = times_to_proof(late / (course.proof - course.alarm), runs=RUNS, watch=watch)
    text = TEXT.format(
        date=datetime.now(UTC).date(),
        machine=machine(),
        floor=FLOOR,
        clients=CLIENTS,
        pause=PAUSE_S,
        lora=DRIFTING,
        waves=WAVES,
        families="\n".join(family_rows(samples, families)),
        good=course.first_bad,
        false_alarm=watch.runs_to_false_alarm,
        share=share,
        to_alarm=course.alarm + 1 - course.first_bad,
        alarm_mean=to_alarm.mean,
        alarm_decile=to_alarm.decile,
        late=late,
        to_proof=course.proof - course.alarm,
        proof_mean=to_proof.mean,
        proof_decile=to_proof.decile,
        runs=RUNS,
        seen="\n".join(f"| {where} | {what} |" for where, what in callers.items()),
        same=same,
        undisturbed=undisturbed,
        lowered_same=lowered_same,
        lowered=lowered,
        took=took,
        stopped=counts["stopped"],
        begun=counts["drawn"] + counts["stopped"],
        overtaken=counts["overtaken"],
        answers=len(traffic.answers),
        minutes=minutes,
    )
    PAGE.write_text(text, encoding="utf-8")
    print(text)
    if (same, lowered_same) != (undisturbed, lowered):
        sys.exit("pictures differ from those of a server without shadow runs")


if __name__ == "__main__":
    main()
