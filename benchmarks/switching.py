"""Waits and switches of several models of which not all fit: `python -m benchmarks.switching`.

A simulation of the queue itself with arrivals of an hour, and a run of three models at one pipeline's thread: a quarter
of an hour on two cores. Writes docs/benchmarks/switching.md.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any, NamedTuple, cast
from unittest.mock import patch

from benchmarks.machine import machine
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.config.residency import SleepLevel
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.pipeline_thread import PipelineThread
from cache_dit_serving.jobs.queue import Queue
from cache_dit_serving.jobs.residency import SleepPolicy
from cache_dit_serving.jobs.residents import MemoryBounds
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.media.inputs import NO_INPUTS
from cache_dit_serving.pipeline import sleeping
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest

PAGE = BUNDLE_ROOT / "docs" / "benchmarks" / "switching.md"
HOURS = 1.0
ROOM = 128
"""Requests that may wait in the simulation; a further one is refused."""
LOADS = (0.5, 0.7, 0.9)
SWITCHES_S = {1.5: "from host memory", 20.0: "from disk"}
GENERATIONS_S = (1.2, 4.0)
POLICIES: dict[str, float | None] = {"0: first come": 0.0, "left out": None, "10 s": 10.0, "60 s": 60.0}
"""Values of `server.switch_after_s` by their names on the page."""
RUN_REQUESTS = 40
RUN_STEPS = 6


class Fleet(NamedTuple):
    """Models of one server."""

    shares: tuple[float, ...]
    """Share of the requests of each."""
    fit: int
    """Models that fit into memory at once."""

    def __str__(self) -> str:
        return f"{self.fit} of {len(self.shares)}: {', '.join(f'{share:.0%}' for share in self.shares)}"


THIRDS = (1 / 3, 1 / 3, 1 / 3)
FLEETS = (
    *(Fleet((0.5, 0.5), 1), Fleet((0.9, 0.1), 1)),
    *(Fleet(THIRDS, 1), Fleet((0.8, 0.1, 0.1), 1)),
    *(Fleet(THIRDS, 2), Fleet((0.8, 0.1, 0.1), 2)),
)


class Memory(NamedTuple):
    """A :class:`~cache_dit_serving.jobs.switching.Placement` of models that are equal in size and way."""

    awake: tuple[object, ...]
    """Models in memory, the one that was used last at the end."""
    fit: int
    seconds: float

    def switch_s(self, generation: Generation) -> float:
        """Return the seconds that the model of a generation takes until it can draw."""
        return 0.0 if generation.model in self.awake else self.seconds

    def after(self, generation: Generation) -> Memory:
        """Return the memory once a generation has run."""
        others = [each for each in self.awake if each is not generation.model]
        return self._replace(awake=(*others, generation.model)[-self.fit :])


class Simulated(NamedTuple):
    """Result of a simulation."""

    waits: list[float]
    """Seconds that each request waited, its switch included."""
    switches: int
    seconds: float
    drawing: float
    """Share of the time in which the pipeline drew."""
    refused: float
    """Share of the requests that found no room."""
    too_long: int
    """Times that the first one was overtaken though its patience was over; a fault of the server."""


def simulated(
    fleet: Fleet, switch_s: float, generation_s: float, load: float, switch_after_s: float | None
) -> Simulated:
    """Simulate the queue of a server for some hours.

    Args:
        load: share of the time that the requests take to draw, without switches.
    """
    now = free_at = busy_s = 0.0
    models = [cast(Any, object()) for _ in fleet.shares]
    memory = Memory(tuple(models[: fleet.fit]), fleet.fit, switch_s)
    queue = Queue(
        "arrival",
        lambda generation: generation_s,
        lambda: now,
        placement=lambda: memory,
        switch_after_s=switch_after_s,
    )
    came: dict[Generation, float] = {}
    passed_at: dict[Generation, float] = {}
    waits: list[float] = []
    switches = too_long = 0

    def begin(until: float) -> None:
        nonlocal now, free_at, busy_s, memory, switches, too_long
        while len(queue) and free_at <= until:
            now = free_at
            waiting_s = len(queue) * generation_s
            first = next(iter(came))
            generation = queue.next()
            if generation is not first:
                patience_s = max(2 * switch_s, waiting_s) if switch_after_s is None else switch_after_s
                too_long += now - passed_at.setdefault(first, now) > patience_s
            switched_s = memory.switch_s(generation)
            switches += switched_s > 0
            memory = memory.after(generation)
            waits.append(now + switched_s - came.pop(generation))
            busy_s += generation_s
            free_at = now + switched_s + generation_s

    number = refused = 0
    for number, (at, model) in enumerate(arrivals(load / generation_s, models, fleet.shares), 1):
        begin(at)
        now = at
        free_at = max(free_at, now)
        if len(queue) >= ROOM:
            refused += 1
            continue
        generation = Generation(str(number), cast(Any, SimpleNamespace(warnings=(), to_resize=())))
        generation.admit(model)
        came[generation] = at
        queue.add(generation)
        begin(at)
    begin(float("inf"))
    seconds = max(free_at, HOURS * 3600)
    return Simulated(waits, switches, seconds, busy_s / seconds, refused / number, too_long)


def arrivals(rate: float, models: list[Any], shares: tuple[float, ...]) -> Iterator[tuple[float, Any]]:
    """Times and models of the requests of some hours, by a Poisson process."""
    dice = random.Random(1)
    at = 0.0
    while (at := at + dice.expovariate(rate)) <= HOURS * 3600:
        yield at, dice.choices(models, shares)[0]


class Measured(NamedTuple):
    """Result of a run."""

    waits: list[float]
    """Seconds that each request waited, its switch included."""
    switches: int
    seconds: float
    """Seconds until all were drawn."""


def measured(level: SleepLevel, switch_after_s: float | None) -> Measured:
    """Measure three copies of the embedded model, of which one fits into memory."""
    settings = load_settings({"CACHE_DIT_SERVING__SPEEDS__WARM_UP": "false"})
    settings = settings.model_copy(
        update={
            "server": settings.server.model_copy(update={"warm_up": False}),
            "model": settings.model.model_copy(update={"schedulers": {}}),
        }
    )

    load = partial(assemble, settings)
    weight_bytes = sum(each.bytes for each in load(lambda stage: None).runner.facts.components)
    thread = PipelineThread(
        max_queue=RUN_REQUESTS, bounds=MemoryBounds(device=weight_bytes), switch_after_s=switch_after_s
    )
    workers = [
        PipelineWorker(
            thread,
            thread.add(
                load, again=load, name=name, on_request=True, resident="on-demand", sleep=SleepPolicy(None, level)
            ),
        )
        for name in "abc"
    ]
    thread.start()
    while thread.state == "loading":
        time.sleep(0.05)

    def generation(worker: PipelineWorker, seed: int) -> Generation:
        asked = GenerateRequest.model_validate(
            {"prompt": "a red apple", "seed": seed, "num_inference_steps": RUN_STEPS, "speed": "lossless"}
        )
        return Generation(str(seed), plan(resolve(asked, worker.loaded().model), NO_INPUTS))

    def drawn(worker: PipelineWorker) -> None:
        each = generation(worker, 0)
        worker.submit(each)
        each.result.result(120)

    for worker in workers:
        if (loading := worker.load()) is not None:
            loading.result(120)
        drawn(worker)
    for worker in workers:
        drawn(worker)  # what a switch takes is known then
    order = [workers[number % len(workers)] for number in range(RUN_REQUESTS)]
    random.Random(1).shuffle(order)
    coming = [(worker, generation(worker, seed)) for seed, worker in enumerate(order, 1)]
    for worker, each in coming:
        worker.submit(each)
    for _, each in coming:
        each.result.result(600)
    waits = [each.waited_s + each.wake_s for _, each in coming]
    seconds = max(each.finished or 0.0 for _, each in coming) - min(each.submitted for _, each in coming)
    thread.drain()
    thread.join(60)
    return Measured(waits, sum(each.wake_s > 0 for _, each in coming), seconds)


TEXT = """\
# Switches between models

Written by `python -m benchmarks.switching` ({date}). [Several models](../several-models.md) of one server, of which not
all fit into memory at once: a request for one that is not there needs a switch. `server.switch_after_s` bounds the time
for which requests for models in memory go before it; left out, twice the switch, or as long as all that wait take if
that is longer.

## Simulated

The queue of the server (`jobs/queue.py`) under a simulated clock, {hours:g} h of arrivals at random (Poisson), all of
one priority. The load is the time that the requests take to draw, as a share of all, without switches. Up to {room}
requests wait; further ones are refused. All values of `server.switch_after_s` get the same requests.

"1 of 2: 90%, 10%" are two models of which one fits, and their shares of the requests. Each cell has the mean wait, the
95th percentile and the greatest wait in seconds; the switches per hour; the share of the time in which the pipeline
draws; and the refused requests if there are any.

{simulated}

{counted}

{lost}
## Measured

Three copies of the embedded model at one pipeline's thread, of which one fits; {requests} requests of {steps} steps in
a shuffled order, all submitted at once. The models that give way go to host memory or to the disk.

{machine}

| level | `switch_after_s` | mean wait, s | greatest, s | switches | all drawn after, s |
|---|---|---|---|---|---|
{measured}
"""


def cell(of: Simulated) -> str:
    """One cell of the page's tables."""
    mean, most = statistics.mean(of.waits), max(of.waits)
    percentile = statistics.quantiles(of.waits, n=20)[-1]
    refused = f"; **{of.refused:.0%} refused**" if of.refused > 0.0005 else ""
    hourly = of.switches / of.seconds * 3600
    return f"{mean:.1f}, {percentile:.0f}, {most:.0f}; {hourly:.0f}; {of.drawing:.0%}{refused}"


def losses(cases: dict[tuple[Any, ...], dict[str, Simulated]]) -> str:
    """Text on the cases in which the default is not the best."""
    rows = []
    for (fleet, switch_s, generation_s, load), by_policy in cases.items():
        means = {name: statistics.mean(of.waits) for name, of in by_policy.items() if not of.refused}
        best = min(means, key=lambda name: means[name], default="left out")
        default, most = (of(by_policy["left out"].waits) for of in (statistics.mean, max))
        if best != "left out" and default > 1.1 * means[best]:
            case = f"{fleet} | {switch_s:g} s | {generation_s:g} s | {load}"
            better = f"{means[best]:.1f}, {max(by_policy[best].waits):.0f} ({best})"
            rows.append(f"| {case} | {default:.1f}, {most:.0f} | {better} |")
    if not rows:
        return "The default is within a tenth of the best mean wait in each case.\n"
    head = "| models | switch | generation | load | left out, s | best, s |\n|---|---|---|---|---|---|"
    said = "Cases in which another value has a mean wait that is less by more than a tenth; mean and greatest wait:"
    return "\n".join([said, "", head, *rows, ""])


def main() -> None:
    """Simulate, measure, and write the page."""
    cases: dict[tuple[Any, ...], dict[str, Simulated]] = {}
    tables = []
    for (switch_s, place), generation_s in product(SWITCHES_S.items(), GENERATIONS_S):
        lines = [f"### A switch of {switch_s:g} s ({place}), a generation of {generation_s:g} s", ""]
        lines += [f"| models | load | {' | '.join(POLICIES)} |", "|---|---|" + "---|" * len(POLICIES)]
        for fleet, load in product(FLEETS, LOADS):
            by_policy = {
                name: simulated(fleet, switch_s, generation_s, load, after_s) for name, after_s in POLICIES.items()
            }
            cases[fleet, switch_s, generation_s, load] = by_policy
            lines.append(f"| {fleet} | {load} | {' | '.join(map(cell, by_policy.values()))} |")
            print(lines[-1], flush=True)
        tables.append("\n".join(lines))
    all_runs = [of for by_policy in cases.values() for of in by_policy.values()]
    counted = (
        f"In {len(all_runs)} simulations with {sum(len(of.waits) for of in all_runs)} requests, the first one in the "
        f"queue was overtaken {sum(of.too_long for of in all_runs)} times though its patience was over."
    )
    rows = []
    levels: tuple[SleepLevel, ...] = ("disk", "host")
    for level in levels:
        with patch.object(sleeping, "why_not_in_host_memory", lambda device: None):  # the CPU stands in for a GPU
            for name in ("0: first come", "left out"):
                run = measured(level, POLICIES[name])
                figures = f"{statistics.mean(run.waits):.2f} | {max(run.waits):.1f} | {run.switches}"
                rows.append(f"| {level} | {name} | {figures} | {run.seconds:.1f} |")
                print(rows[-1], flush=True)
    text = TEXT.format(
        date=datetime.now(UTC).date(),
        hours=HOURS,
        room=ROOM,
        requests=RUN_REQUESTS,
        steps=RUN_STEPS,
        machine=machine(),
        simulated="\n\n".join(tables),
        counted=counted,
        lost=losses(cases),
        measured="\n".join(rows),
    )
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
