"""The report for people: Markdown, and one HTML page with the front, pictures and residual differences."""

from __future__ import annotations

import base64
import io
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cache_dit_serving.measure.distances.table import MEASURES
from cache_dit_serving.measure.page import parts
from cache_dit_serving.measure.page.document import page
from cache_dit_serving.measure.page.plots import Point as Mark
from cache_dit_serving.measure.page.plots import Series, plot
from cache_dit_serving.measure.search.drawer import Drawn
from cache_dit_serving.measure.search.floors import STEPS, floors_text
from cache_dit_serving.measure.search.measures import OF_KIND
from cache_dit_serving.measure.search.outcome import Outcome, value_of
from cache_dit_serving.measure.search.points import Case, Point, differing
from cache_dit_serving.measure.search.samples import SURE, Result
from cache_dit_serving.media.values import AudioOutput, ImageOutput, Media

WIDEST = 384
"""Greatest side of a picture in the page, pixels."""
SLOWEST = 1.1
"""Greatest time in the plot, as a share of the reference's: slower points save nothing."""
SHOWN_CASES = 2
"""Unseen outputs whose pictures are in the page."""
VERDICTS = {"beats": "beats them", "even": "even", "loses": "fewer steps win"}
Rows = list[list[str]]


class Shown:
    """Pictures and residual differences of the outputs that are drawn for the verification.

    They are kept in a file, because a run that goes on draws nothing twice.
    """

    def __init__(self, cases: Sequence[Case], file: Path) -> None:
        self._cases = list(cases[:SHOWN_CASES])
        self._file = file
        self.pictures: dict[tuple[Case, str], str] = {}
        """Data URI of a picture by case and point's key."""
        self.diffs: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(dict))
        """Residual differences by step, by the point's key and block list."""

        if file.exists():
            self._read(json.loads(file.read_text(encoding="utf-8")))

    def _read(self, kept: Mapping[str, Any]) -> None:
        for prompt, seed, key, picture in kept["pictures"]:
            self.pictures[Case(prompt, seed), key] = picture
        for key, lists in kept["diffs"].items():
            for name, steps in lists.items():
                self.diffs[key][name] = {int(step): diffs for step, diffs in steps.items()}

    def save(self) -> None:
        """Write the file."""
        pictures = [[*case, key, picture] for (case, key), picture in self.pictures.items()]
        self._file.write_text(json.dumps({"pictures": pictures, "diffs": self.diffs}), encoding="utf-8")

    def take(self, case: Case, point: Point, output: Drawn) -> None:
        """Keep what the page shows of an output."""
        if case in self._cases and (picture := _picture(output.media)) is not None:
            self.pictures[case, point.key] = picture
        for name, steps in output.diffs.items():
            for step, diff in steps.items():
                self.diffs[point.key][name].setdefault(step, []).append(diff)

    @property
    def cases(self) -> list[Case]:
        return self._cases


def markdown(outcome: Outcome) -> str:
    """Return the report as Markdown. Its first line is the outcome."""
    lines = [outcome.headline(), "", _circumstances(outcome), ""]
    for title, note, head, rows in _tables(outcome):
        lines += [f"## {title}", "", *([note, ""] if note else []), _row(head), _row(["---"] * len(head))]
        lines += [*(_row(row) for row in rows), ""]
    for title, text in _commands(outcome):
        lines += [f"## {title}", "", "```bash", text, "```", ""]
    return "\n".join(lines)


def html(outcome: Outcome, shown: Shown) -> str:
    """Return the report as one HTML file that fetches nothing."""
    made: list[parts.Part] = [parts.Paragraph(_plain(_circumstances(outcome)))]
    if outcome.curve is not None:
        caption = "Left and low is better. Cached points above the line lose to an uncached run of fewer steps."
        made += [parts.Heading("Time against distance"), parts.Figure(_front_plot(outcome), caption)]
    for title, note, head, rows in _tables(outcome):
        made.append(parts.Heading(title))
        if note:
            made.append(parts.Paragraph(_plain(note)))
        made.append(parts.Table(head, [[_plain(cell) for cell in row] for row in rows], text=True))
    made += [*_side_by_side(outcome, shown), *_curves(outcome, shown)]
    for title, text in _commands(outcome):
        made += [parts.Heading(_plain(title)), *(parts.Paragraph(line) for line in text.splitlines())]
    title = f"Cache settings of {outcome.subject.name}"
    return page(title, made, lead=_plain(outcome.headline()), foot="Written by cache-dit-serving tune.")


def _circumstances(outcome: Outcome) -> str:
    told = "; ".join(f"{name}: {value}" for name, value in outcome.conditions.items())
    counted = ", ".join(f"{count} {name}" for name, count in outcome.trials.items())
    subject = outcome.subject
    return (
        f"Reference: `{subject.name}` without a cache, {subject.steps} steps, {outcome.reference_s:.3g} s an output. "
        "Distances are to its outputs of the same prompt and seed. Times are shares of its seconds, measured in turn. "
        f"{len(outcome.cases)} outputs a point in the search, {len(outcome.unseen)} unseen ones in the verification. "
        f"Suggested points: {counted}. Intervals: 95 %. {told}."
    )


def _tables(outcome: Outcome) -> list[tuple[str, str, list[str], Rows]]:
    tables = []
    names = [measure.name for measure in OF_KIND[outcome.subject.kind]]
    titles = [MEASURES[name].label for name in names]
    if outcome.checked:
        note = (
            "Measured on unseen prompts, against the reference. Nine in ten outputs must reach the floor, with a "
            f"confidence of {SURE:.0%} that covers all points tried for a speed. {_shares(outcome)}{_tries(outcome)}"
        ).strip()
        head = ["speed", "steps", "floor", "holds", "time", "steps reused", *titles, "against fewer steps", "settings"]
        tables.append(("Speeds", note, head, _speed_rows(outcome, names)))
        note = "The fastest uncached run that holds each floor, on unseen prompts."
        head = ["floor of", "plain steps", "time", *titles]
        rows = [
            [f"`{each.choice.speed}`", str(each.plain.point.steps), _time(each.plain), *_values(each.plain, names)]
            for each in outcome.checked
            if each.plain is not None
        ]
        tables.append(("Plain steps at each floor", note, head, rows))
    note = f"Points that no other one beats in both time and {outcome.measure.title}, on the search's prompts."
    head = ["point", "time", "steps reused", *titles, "against fewer steps"]
    tables.append(("The front", note, head, [_point_row(outcome, result, names) for result in outcome.front]))
    uncached = [result for result in outcome.results if result.point.settings is None]
    tables.append(("Fewer steps without a cache", "", head, [_point_row(outcome, each, names) for each in uncached]))
    labelled = [each for each in outcome.results if each.point.settings and each.point.key in outcome.labels]
    rows = [_point_row(outcome, each, names) for each in labelled]
    tables.append(("Defaults and configured speeds", _against_defaults(outcome), head, rows))
    return tables


def _speed_rows(outcome: Outcome, names: Sequence[str]) -> Rows:
    rows = []
    for each in outcome.checked:
        floor = floors_text(each.choice.floors)
        if each.named is None or each.verdict is None:
            told = "" if each.winner is None else _plain_steps(each.winner)
            rows.append([f"`{each.choice.speed}`", "", floor, "no such point", "", "", *[""] * len(names), told, ""])
            continue
        row = [f"`{each.choice.speed}`", str(each.named.point.steps), floor]
        holds = "yes" if each.holds else f"NO: {', '.join(each.missed)}"
        row += [holds, _time(each.named), f"{each.named.cached_steps:.1f}", *_values(each.named, names)]
        told = VERDICTS["loses" if each.fewer_steps_win else each.verdict.outcome]
        if each.winner is not None:
            told = _plain_steps(each.winner)
        rows.append([*row, told, each.named.point.described()])
    return rows


def _plain_steps(result: Result) -> str:
    return f"fewer steps win: {result.point.steps} plain steps"


def _shares(outcome: Outcome) -> str:
    """Return a sentence on the floors that are shares of steps; empty if there are none."""
    shares = [f"`{speed}` {values[STEPS]:.0%}" for speed, values in outcome.asked.items() if STEPS in values]
    likeness = "Floors are the worst decile of uncached runs on the search's prompts with a share of the steps"
    return f"{likeness}: {', '.join(shares)}. " if shares else ""


def _tries(outcome: Outcome) -> str:
    """Return sentences on speeds whose first candidate missed, and on speeds that share a point."""
    told = []
    for each in outcome.checked:
        speed, count = each.choice.speed, len(each.choice.candidates)
        if len(each.tried) > 1:
            told.append(
                f"`{speed}`: {len(each.tried)} points were tried in turn; with {count} candidates each had to hold "
                f"with a confidence of {each.choice.sure:.1%} (Bonferroni)."
            )
        if each.same_as is not None:
            told.append(f"`{speed}`: no faster point holds its floor than that of `{each.same_as}`.")
    return " ".join(told)


def _point_row(outcome: Outcome, result: Result, names: Sequence[str]) -> list[str]:
    verdict = outcome.verdict(result)
    told = ""
    if verdict is not None:
        saved = "" if verdict.time_saved is None else f" ({verdict.time_saved:+.0%} time saved at its likeness)"
        told = VERDICTS[verdict.outcome] + saved
    label = outcome.label(result.point)
    return [label, _time(result), f"{result.cached_steps:.1f}", *_values(result, names), told]


def _against_defaults(outcome: Outcome) -> str:
    sentences = []
    for each in outcome.compared():
        if each.faster is None and each.closer is None:
            sentences.append(f"{each.label} is on the front itself.")
            continue
        told = []
        if each.faster is not None:
            told.append(f"as close in {each.faster.median_ratio / each.default.median_ratio:.0%} of its time")
        if each.closer is not None:
            before, after = (value_of(one, outcome.measure.name) for one in (each.default, each.closer))
            told.append(f"as fast with {outcome.measure.title} {after:.3g} instead of {before:.3g}")
        sentences.append(f"Against {each.label} the front is {', and '.join(told)}.")
    return " ".join(sentences)


def _values(result: Result, names: Sequence[str]) -> list[str]:
    cells = []
    for name in names:
        measure, loss = MEASURES[name], result.loss(MEASURES[name])
        low, high = sorted((measure.value(loss.low), measure.value(loss.high)))
        worst = value_of(result, name, worst=True)
        cells.append(f"{measure.value(loss.value):.4g} ({low:.4g} to {high:.4g}), worst decile {worst:.4g}")
    return cells


def _time(result: Result) -> str:
    ratio = result.ratio()
    return f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f}), {1 / ratio.value:.2f}x"


def _commands(outcome: Outcome) -> list[tuple[str, str]]:
    """Return the commands and requests that repeat the points."""
    commands = []
    if any(each.holds for each in outcome.checked):
        commands.append(("Serve the speeds", "cache-dit-serving serve --config tuned.yaml"))
    for each in outcome.checked:
        if each.holds and each.named is not None:
            title = f"`{each.choice.speed}` by a request, {each.named.point.steps} steps"
            commands.append((title, _request(each.named.point)))
        if each.winner is not None:
            steps = each.winner.point.steps
            commands.append(
                (f"At the floor of `{each.choice.speed}`, {steps} plain steps", _request(each.winner.point))
            )
    return commands


def _request(point: Point) -> str:
    body: dict[str, Any] = {"prompt": "...", "num_inference_steps": point.steps}
    body |= {"speed": "lossless"} if point.settings is None else {"cache": differing(point.settings)}
    return f"curl localhost:3000/generate -H 'Content-Type: application/json' -d '{json.dumps(body)}'"


def _front_plot(outcome: Outcome) -> Any:
    measure = outcome.measure
    sooner = [result for result in outcome.results if result.median_ratio <= SLOWEST]
    cached = [result for result in sooner if result.point.settings is not None]
    chosen = {each.named.point.key for each in outcome.checked if each.named is not None}
    assert outcome.curve is not None
    corners = [(time, measure.value(loss)) for time, loss in outcome.curve.points()[:-1]]
    series = [
        Series("fewer steps, no cache", [Mark(time, value, label="no cache") for time, value in corners]),
        Series("cached", _marks(outcome, [each for each in cached if each.point.key not in chosen]), line=False),
        Series("chosen", _marks(outcome, [each for each in cached if each.point.key in chosen]), line=False),
        Series("front", _marks(outcome, [each for each in outcome.front if each in sooner], ranges=False)),
    ]
    return plot(
        [each for each in series if each.points],
        x="time, share of the reference's",
        y=measure.label,
        title="Time against distance",
        y_zero=not measure.higher_is_better,
    )


def _marks(outcome: Outcome, results: Sequence[Result], *, ranges: bool = True) -> list[Mark]:
    marks = []
    for result in results:
        ratio, loss = result.ratio(), result.loss(outcome.measure)
        low, high = sorted((outcome.measure.value(loss.low), outcome.measure.value(loss.high)))
        x, y, label = ratio.value, outcome.measure.value(loss.value), outcome.label(result.point)
        across = (ratio.low, min(ratio.high, SLOWEST))
        marks.append(Mark(x, y, (low, high), across, label) if ranges else Mark(x, y, label=label))
    return marks


def _side_by_side(outcome: Outcome, shown: Shown) -> list[parts.Part]:
    made: list[parts.Part] = []
    reference = Point(outcome.subject.steps)
    for case in shown.cases:
        wanted = [(reference, f"no cache, {reference.steps} steps")]
        for each in outcome.checked:
            if each.named is not None and each.verdict is not None:
                told = f"{each.choice.speed}, {each.named.point.steps} steps, {1 / each.named.median_ratio:.2f}x"
                wanted.append((each.named.point, told))
                wanted.append((each.verdict.rival, f"no cache, {each.verdict.rival.steps} steps"))
        found = {
            point.key: (shown.pictures[case, point.key], text)
            for point, text in wanted
            if (case, point.key) in shown.pictures
        }
        if len(found) > 1:
            made.append(parts.Pictures(list(found.values()), f"{case.prompt}, seed {case.seed} (unseen in the search)"))
    return [parts.Heading("Side by side"), *made] if made else []


def _curves(outcome: Outcome, shown: Shown) -> list[parts.Part]:
    series = []
    for each in outcome.checked:
        lists: Mapping[str, Mapping[int, list[float]]] = (
            shown.diffs.get(each.named.point.key, {}) if each.named is not None else {}
        )
        for name, steps in lists.items():
            marks = [Mark(step, statistics.median(diffs)) for step, diffs in sorted(steps.items())]
            if marks:
                series.append(Series(f"{each.choice.speed}, {name}", marks))
    if not series:
        return []
    drawing = plot(series, x="step", y="residual difference", title="Residual difference by step")
    caption = "Median over the unseen outputs. Steps that a mask decides, or that are computed by rule, have none."
    return [parts.Heading("Residual differences"), parts.Figure(drawing, caption)]


def _picture(media: Media) -> str | None:
    """Return a picture, or the middle frame of a video, as a data URI; None for a sound."""
    from PIL import Image

    if isinstance(media, AudioOutput):
        return None
    array = media.array if isinstance(media, ImageOutput) else media.array[len(media.array) // 2]
    if array.dtype != np.uint8:
        array = (np.clip(array, 0, 1) * 255).round().astype(np.uint8)
    image = Image.fromarray(array)
    image.thumbnail((WIDEST, WIDEST))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=92)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _plain(text: str) -> str:
    return text.replace("**", "").replace("`", "")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
