"""Verdict of a gate as a text for people."""

from __future__ import annotations

from collections.abc import Iterator

from cache_dit_serving.measure.distances.table import MEASURES
from cache_dit_serving.measure.gate.verdict import Held, Judged, Verdict, counted
from cache_dit_serving.measure.page.markdown import markdown
from cache_dit_serving.measure.page.parts import Paragraph, Part, Table
from cache_dit_serving.measure.search.samples import WORST

FEW = 20
"""Outputs below which a worst decile is not much more than the worst output."""
COLUMNS = ("speed", "steps", "reused steps", "times as fast", "measure", "worst decile", "floor", "worst", "")


def as_markdown(verdict: Verdict) -> str:
    """Return the table, its conditions, and a sentence for each miss."""
    title = f"Speeds of {verdict.subject.name} against uncached outputs"
    return markdown(title, [_table(verdict), *(Paragraph(text) for text in _conditions(verdict))])


def sentences(verdict: Verdict) -> list[str]:
    """Return a sentence for each miss, or one if all speeds hold."""
    if verdict.holds:
        names = ", ".join(each.speed for each in verdict.judged)
        return [f"{names}: every floor holds on {counted(len(verdict.cases), 'output')}."]
    return [text for each in verdict.judged for text in faults(each)]


def faults(judged: Judged) -> list[str]:
    """Return a sentence for each reason that a speed fails."""
    found = [f"{judged.speed} {judged.fault}."] if judged.fault is not None else []
    return found + [_miss(judged, each) for each in judged.missed]


def _miss(judged: Judged, held: Held) -> str:
    measure = MEASURES[held.measure]
    assert held.floor is not None
    bound = "at least" if measure.higher_is_better else "at most"
    value, floor = _apart(held.worst_decile, held.floor)
    return (
        f"{judged.speed} misses its floor: the worst decile of {held.measure} is {value}, and "
        f"must be {bound} {floor}; the farthest output has {_number(held.worst)}: "
        f"prompt {held.case.prompt!r}, seed {held.case.seed}."
    )


def _table(verdict: Verdict) -> Part:
    rows = [row for each in verdict.judged for row in _rows(each)]
    return Table(COLUMNS, rows)


def _rows(judged: Judged) -> Iterator[list[str]]:
    if not judged.held:
        yield [judged.speed, str(judged.point.steps), *["-"] * 6, "FAILS"]
        return
    cells = [f"{judged.point.steps}", f"{judged.result.cached_steps:.1f}", f"{1 / judged.result.median_ratio:.2f}"]
    for held in judged.held:
        floor = "-" if held.floor is None else _number(held.floor)
        state = "" if held.floor is None else "holds" if held.holds else "MISSES"
        if held.floor is not None and judged.fault is not None:
            state = "FAILS"
        label = MEASURES[held.measure].label
        yield [judged.speed, *cells, label, _number(held.worst_decile), floor, _number(held.worst), state]


def _conditions(verdict: Verdict) -> Iterator[str]:
    subject, count = verdict.subject, len(verdict.cases)
    prompts = len({case.prompt for case in verdict.cases})
    yield (
        f"Reference: no cache, {subject.steps} steps, median {verdict.reference_s:.3g} s. "
        f"{counted(count, 'output')} of each speed, of {counted(prompts, 'prompt')} ({verdict.prompts_are}). "
        + ". ".join(f"{name.capitalize()}: {value}" for name, value in subject.conditions.items())
    )
    yield (
        "Worst decile: a tenth of a speed's outputs are farther from the uncached output of the same prompt and seed. "
        f"{_rank(count)}"
    )
    for origin in dict.fromkeys(each.origin for each in verdict.judged):
        names = ", ".join(each.speed for each in verdict.judged if each.origin == origin)
        yield f"Floors of {names}: {origin}."


def _rank(count: int) -> str:
    """Return the rank of the worst decile among so many outputs, in a sentence."""
    rank = 1 + WORST * (count - 1)
    if count < FEW:
        return f"Of {counted(count, 'output')} it is hardly more than the worst one: draw {FEW} or more."
    return f"Of {count} outputs it is about the {_ordinal(round(rank))} worst."


def _ordinal(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _apart(value: float, floor: float) -> tuple[str, str]:
    """Return two different numbers with as many digits as show the difference, at least four."""
    texts = ((f"{value:.{digits}g}", f"{floor:.{digits}g}") for digits in range(4, 18))
    return next(pair for pair in texts if pair[0] != pair[1])
