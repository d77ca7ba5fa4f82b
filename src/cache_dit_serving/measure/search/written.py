"""Files of the outcome for programs: a configuration for the server, files for cache-dit, and the front as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from cache_dit_serving.caching.parts import PARTS
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.measure.distances.table import MEASURES
from cache_dit_serving.measure.search.floors import floors_text
from cache_dit_serving.measure.search.measures import OF_KIND, PSNR, SSIM
from cache_dit_serving.measure.search.outcome import Outcome, value_of
from cache_dit_serving.measure.search.points import Point, differing
from cache_dit_serving.measure.search.samples import Result
from cache_dit_serving.measure.search.verification import Checked
from cache_dit_serving.measure.statistics import Estimate

SECTIONS = ("about", "model", "attention_backend", "quantize", "compile", "parallelism", "defaults", "limits")
"""Sections of a configuration that the tuned one keeps. Those of the server itself stay out: they may hold secrets."""


def write(outcome: Outcome, settings: Settings | None, folder: Path) -> None:
    """Write the files of an outcome.

    Args:
        settings: configuration that was searched; None if a server was, whose configuration is not known.

    Raises:
        OSError: a file cannot be written.
    """
    for stale in (folder / "tuned.yaml", *folder.glob("cache-dit-*.yaml")):
        stale.unlink(missing_ok=True)  # of an earlier run, whose points may not hold any more
    (folder / "front.json").write_text(json.dumps(front_json(outcome), indent=1) + "\n", encoding="utf-8")
    if any(each.holds for each in outcome.checked):
        (folder / "tuned.yaml").write_text(configuration(outcome, settings), encoding="utf-8")
    for each in outcome.checked:
        if each.holds and each.named is not None and each.named.point.settings is not None:
            file = folder / f"cache-dit-{each.choice.speed}.yaml"
            file.write_text(for_cache_dit(each.named.point), encoding="utf-8")


def configuration(outcome: Outcome, settings: Settings | None) -> str:
    """Return a configuration with the speeds that hold, as YAML that `serve --config` takes."""
    whole = settings.model_dump(mode="json", exclude_unset=True) if settings is not None else {}
    tree: dict[str, Any] = {name: whole[name] for name in SECTIONS if whole.get(name)}
    before = whole.get("speeds", {})
    speeds = {name: value for name, value in before.items() if name in ("default", "floors")}
    speeds["measured_on"] = measured_on(outcome)
    lines = [f"# {outcome.headline()}".replace("**", ""), "# Written by `cache-dit-serving tune`."]
    family = settings.cache.enable_separate_cfg if settings is not None and settings.cache is not None else None
    for each in outcome.checked:
        point = each.named.point if each.named is not None and each.holds else None
        floors = before.get(each.choice.speed, {}).get("floors")
        section: dict[str, Any] = {"floors": floors} if floors else {}
        if point is None or point.settings is None or each.named is None:
            lines.append(f"# {each.choice.speed}: no point holds {floors_text(each.choice.floors)}")
            speeds[each.choice.speed] = section
            continue
        if each.fewer_steps_win:
            lines.append(f"# {each.choice.speed}: fewer steps without a cache win, see the first line")
        if each.same_as is not None:
            lines.append(f"# {each.choice.speed}: no faster point holds its floor than that of {each.same_as}")
        if point.steps != outcome.subject.usual_steps:
            section["num_inference_steps"] = point.steps
        if SSIM in OF_KIND[outcome.subject.kind]:
            section["measured"] = figures(each.named)
        if each.choice.speed == "balanced":
            fact = {} if family is None else {"enable_separate_cfg": family}
            tree["cache"] = differing(point.settings) | fact
            speeds["balanced"] = section
        else:
            speeds[each.choice.speed] = {"cache": differing(point.settings), **section}
    if "cache" not in tree and whole.get("cache"):
        tree["cache"] = whole["cache"]
    tree["speeds"] = {name: value for name, value in speeds.items() if value != {}}
    return "\n".join(lines) + "\n" + yaml.safe_dump(tree, sort_keys=False, width=118, allow_unicode=True)


def figures(result: Result) -> dict[str, Any]:
    """Return the figures of a speed, on outputs that the search has not seen: see `MeasuredSpeed`."""
    assert result.point.settings is not None
    return {
        "settings_hash": result.point.settings.digest(),
        "num_inference_steps": result.point.steps,
        "speedup": round(statistics.median(1 / ratio for ratio in result.ratios()), 2),
        "psnr_db": round(_median(result, PSNR.name), 1),
        "psnr_db_worst_decile": round(value_of(result, PSNR.name, worst=True), 1),
        "ssim": round(_median(result, SSIM.name), 4),
        "ssim_worst_decile": round(value_of(result, SSIM.name, worst=True), 4),
        "cached_steps": round(result.cached_steps, 1),
    }


def measured_on(outcome: Outcome) -> str:
    """Return the circumstances of the figures in one line."""
    prompts = len({case.prompt for case in outcome.unseen})
    told = ". ".join(f"{name.capitalize()}: {value}" for name, value in outcome.conditions.items())
    return f"{told}. {len(outcome.unseen)} outputs of {prompts} prompts not searched on. {date.today().isoformat()}"


def for_cache_dit(point: Point) -> str:
    """Return the settings as YAML for `cache_dit.load_configs`, which knows no bins and no settings of parts.

    The number of steps is that of the pipeline's call, and stands in a comment; so do parts whose settings are lost.
    """
    settings, steps = point.settings, point.steps
    assert settings is not None
    fields = {name: value for name, value in differing(settings).items() if name not in PARTS}
    if (mask := settings.mask(steps)) is not None:
        fields |= {"steps_computation_mask": mask, "num_inference_steps": steps}
    text: str = yaml.safe_dump({"cache_config": fields}, sort_keys=False, default_flow_style=None, width=118)
    lost = [part for kind in PARTS for part in getattr(settings, kind)]
    told = (
        f"# Not the measured speed: such a file has no settings of a part, here of {', '.join(lost)}.\n" if lost else ""
    )
    return f"# For outputs of {steps} steps: pipeline(..., num_inference_steps={steps}).\n{told}{text}"


def front_json(outcome: Outcome) -> dict[str, Any]:
    """Return every point that was measured whole, with intervals, and the outcome in words."""
    on_front = {result.point.key for result in outcome.front}
    return {
        "summary": outcome.headline().replace("**", ""),
        "model": outcome.subject.name,
        "reference": {"steps": outcome.subject.steps, "seconds": outcome.reference_s},
        "measure": outcome.measure.name,
        "conditions": dict(outcome.conditions),
        "outputs": {"search": len(outcome.cases), "unseen": len(outcome.unseen)},
        "trials": dict(outcome.trials),
        "floors": {speed: dict(floors) for speed, floors in outcome.floors.items()},
        "points": [
            _point_json(outcome, result) | {"on_front": result.point.key in on_front}
            for result in sorted(outcome.results, key=lambda result: result.median_ratio)
        ],
        "speeds": [_checked_json(outcome, each) for each in outcome.checked],
        "defaults": [
            {
                "label": each.label,
                "faster_at_its_likeness": each.faster and each.faster.point.as_json(),
                "closer_at_its_time": each.closer and each.closer.point.as_json(),
            }
            for each in outcome.compared()
        ],
    }


def _point_json(outcome: Outcome, result: Result) -> dict[str, Any]:
    verdict = outcome.verdict(result)
    against = verdict and {
        "outcome": verdict.outcome,
        "closer": _interval(verdict.closer),
        "time_saved": verdict.time_saved,
        "nearest_steps": verdict.rival.steps,
    }
    return {
        "label": outcome.label(result.point),
        **result.point.as_json(),
        "time_ratio": _interval(result.ratio()),
        "seconds": result.seconds,
        "cached_steps": result.cached_steps,
        **{name: _values(result, name) for name in _names(outcome)},
        "against_fewer_steps": against,
    }


def _checked_json(outcome: Outcome, each: Checked) -> dict[str, Any]:
    named = each.named and {
        **each.named.point.as_json(),
        "time_ratio": _interval(each.named.ratio()),
        **{name: _values(each.named, name) for name in _names(outcome)},
        "against_fewer_steps": each.verdict and each.verdict.outcome,
        "fewer_steps_win": each.fewer_steps_win,
        "same_as": each.same_as,
    }
    return {
        "speed": each.choice.speed,
        "floors": dict(each.choice.floors),
        "holds": each.holds,
        "missed": each.missed,
        "named": named,
        "candidates": [result.point.as_json() for result in each.choice.candidates],
        "tried": len(each.tried),
        "confidence": each.choice.sure,
        "fewest_plain_steps": each.plain and each.plain.point.steps,
    }


def _names(outcome: Outcome) -> list[str]:
    return [measure.name for measure in OF_KIND[outcome.subject.kind]]


def _values(result: Result, name: str) -> dict[str, Any]:
    measure = MEASURES[name]
    loss = result.loss(measure)
    ends = sorted((measure.value(loss.low), measure.value(loss.high)))
    return {"mean": measure.value(loss.value), "interval": ends, "worst_decile": value_of(result, name, worst=True)}


def _interval(estimate: Estimate) -> Mapping[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _median(result: Result, name: str) -> float:
    return statistics.median(sample.distances[name] for sample in result.samples.values())
