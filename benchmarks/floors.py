"""What watched floors find, and how soon: `python -m benchmarks.floors`.

A simulation of many watches on outputs whose share beyond the floor is known: ten seconds on one core.
Writes docs/benchmarks/floors.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np

from benchmarks.floors_simulation import (
    GOOD,
    changes,
    ever_outside,
    theory,
    times_of_one_start,
    times_to_alarm,
    times_to_proof,
)
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.measure.evidence.betting import LIMIT
from cache_dit_serving.measure.evidence.floor_watch import RUNS_TO_FALSE_ALARM, WRONG_PROOF, FloorState, FloorWatch
from cache_dit_serving.measure.evidence.outlook import outputs_to_alarm, outputs_to_proof
from cache_dit_serving.measure.statistics import CONFIDENCE

PAGE = BUNDLE_ROOT / "docs" / "benchmarks" / "floors.md"
RUNS = 1000
"""Simulated watches for each figure of the page."""
GOOD_OUTPUTS = 500
"""Outputs with a share of `GOOD` before a change."""
EDGE_LIMIT = 20_000
"""Outputs after which a watch without a false alarm ends."""
CHANGE_OUTPUTS = 10_000
PROOF_OUTPUTS = 5000
INTERVAL_OUTPUTS = 2000
EDGE_SHARES = (0.1, 0.09, 0.08, 0.05)
MISS_SHARES = (0.15, 0.2, 0.3, 0.5, 1.0)
HOLD_SHARES = (0.0, 0.01, 0.02, 0.05)
WRONG_SHARES = (0.1, 0.12, 0.2)
CHANGE_SHARES = (0.02, 0.05, 0.08, 0.1, 0.12, 0.15)
INTERVAL_SHARES = (0.02, 0.1, 0.3)
TEXT = """\
# Watched floors

Written by `python -m benchmarks.floors` ({date}): simulations of {runs:,} watches each, with a fixed seed. No figure
depends on the hardware. An *output* is here a cached output of live traffic that is drawn again without the cache (a
shadow run). The *share* is that of a speed's outputs beyond one floor. A floor holds if its share is at most
{limit:.0%}. `measure/evidence/betting.py` and `floor_watch.py` have the method and its literature.

The tables are for one floor. With m floors on a speed, the threshold of each is m times {threshold:,.0f}, so that the
speed has no more false alarms; a miss is then found about log(m) / KL outputs later.

## False alarms

Outputs until a floor that holds counts as missed. The promise at {limit:.0%} is a mean of at least {threshold:,.0f}.
The outputs need not be independent, but each must lie beyond the floor with a probability of at most {limit:.0%},
whatever came before it: a run of like requests that the speed serves badly is a change, and is found as one. A watch
without an alarm ends after {edge_limit:,} outputs.

| share | outputs watched | false alarms | outputs for each |
|---|---|---|---|
{edges}

## Misses

Outputs until a floor that is missed counts as missed. *Later*: the share changes after {good_outputs} outputs with a
share of {good:.0%}. *One start*: the same bets, staked at the first output alone (a plain e-process): it must first win
back what those outputs cost. *Theory* is log({threshold:,.0f}) / KL, for a detector that knows the share, as the
threshold grows. *Outlook* is the number that a watch tells before its first output.

| share | mean | nine in ten within | later, mean | one start, later, mean | theory | outlook |
|---|---|---|---|---|---|---|
{misses}

## Recoveries

Outputs until a missed floor counts as held, after a repair that leaves this share: at the alarm, or after further
outputs with a share of 50%.

| share | mean | nine in ten within | after 100, mean | after 500, mean | outlook |
|---|---|---|---|---|---|
{proofs}

The chance that a floor ever counts as held while it is missed is at most {wrong:.0%}. Within {proof_outputs:,} outputs:
{wrongs}.

## Near the edge

Changes to and from *missed* in {change_outputs:,} outputs, and the part of the outputs at which the floor counted as
missed. A share close below {limit:.0%} is slow to prove, so a false alarm there lowers the speed for long, unless the
operator restores it.

| share | changes, mean | changes, most | missed |
|---|---|---|---|
{changes}

## Interval of the share

Part of the watches whose {confidence:.0%} interval leaves out the true share at any of
{interval_outputs:,} outputs, by promise at most {outside:.0%}:
{intervals}.
"""


def edge_rows(watch: FloorWatch) -> Iterator[str]:
    """Yield the rows of false alarms."""
    for share in EDGE_SHARES:
        times = times_to_alarm(share, runs=RUNS, limit=EDGE_LIMIT, watch=watch)
        outputs, alarms = int(times.outputs.sum()), int(times.came.sum())
        each = f"{outputs / alarms:,.0f}" if alarms else f"over {outputs:,}"
        yield f"| {share:.0%} | {outputs:,} | {alarms:,} | {each} |"


def miss_rows(watch: FloorWatch) -> Iterator[str]:
    """Yield the rows of misses."""
    for share in MISS_SHARES:
        at_once = times_to_alarm(share, runs=RUNS, watch=watch)
        later = times_to_alarm(share, runs=RUNS, good_outputs=GOOD_OUTPUTS, watch=watch)
        one_start = times_of_one_start(share, runs=RUNS, good_outputs=GOOD_OUTPUTS, watch=watch)
        means = f"{at_once.mean:.0f} | {at_once.decile:.0f} | {later.mean:.0f} | {one_start.mean:.0f}"
        expected = outputs_to_alarm(watch, FloorState(), share)
        yield f"| {share:.0%} | {means} | {theory(share, RUNS_TO_FALSE_ALARM):.0f} | {expected} |"


def proof_rows(watch: FloorWatch) -> Iterator[str]:
    """Yield the rows of recoveries."""
    for share in HOLD_SHARES:
        at_once, *later = (times_to_proof(share, runs=RUNS, bad_outputs=bad, watch=watch) for bad in (0, 100, 500))
        means = " | ".join(f"{times.mean:.0f}" for times in later)
        expected = outputs_to_proof(watch, FloorState("missed"), share)
        yield f"| {share:.0%} | {at_once.mean:.0f} | {at_once.decile:.0f} | {means} | {expected} |"


def change_rows(watch: FloorWatch) -> Iterator[str]:
    """Yield the rows of changes near the edge."""
    shares = np.repeat(CHANGE_SHARES, 200)
    found, missed = changes(shares, outputs=CHANGE_OUTPUTS, watch=watch)
    for share in CHANGE_SHARES:
        these = shares == share
        yield f"| {share:.0%} | {found[these].mean():.2f} | {found[these].max()} | {missed[these].mean():.1%} |"


def main() -> None:
    """Simulate, print and write the page."""
    watch = FloorWatch("ssim", 0.95)
    wrong = [
        (share, times_to_proof(share, runs=RUNS, limit=PROOF_OUTPUTS, watch=watch).came.mean())
        for share in WRONG_SHARES
    ]
    intervals = [(share, ever_outside(share, outputs=INTERVAL_OUTPUTS, runs=RUNS)) for share in INTERVAL_SHARES]
    text = TEXT.format(
        date=datetime.now(UTC).date(),
        runs=RUNS,
        limit=LIMIT,
        threshold=RUNS_TO_FALSE_ALARM,
        wrong=WRONG_PROOF,
        good=GOOD,
        good_outputs=GOOD_OUTPUTS,
        edge_limit=EDGE_LIMIT,
        change_outputs=CHANGE_OUTPUTS,
        proof_outputs=PROOF_OUTPUTS,
        interval_outputs=INTERVAL_OUTPUTS,
        confidence=CONFIDENCE,
        outside=1 - CONFIDENCE,
        edges="\n".join(edge_rows(watch)),
        misses="\n".join(miss_rows(watch)),
        proofs="\n".join(proof_rows(watch)),
        changes="\n".join(change_rows(watch)),
        wrongs=_listed(wrong),
        intervals=_listed(intervals),
    )
    PAGE.write_text(text, encoding="utf-8")
    print(text)


def _listed(parts: list[tuple[float, float]]) -> str:
    return ", ".join(f"{part:.1%} at a share of {share:.0%}" for share, part in parts)


if __name__ == "__main__":
    main()
