"""Verdict of a gate for programs: JSON, and the XML of JUnit that CI systems show."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any
from xml.etree import ElementTree

from cache_dit_serving.measure.gate.report import faults
from cache_dit_serving.measure.gate.verdict import Held, Judged, Verdict


def as_json(verdict: Verdict) -> str:
    """Return the verdict with every output's figures as JSON."""
    subject = verdict.subject
    tree = {
        "holds": verdict.holds,
        "model": subject.name,
        "statistic": "worst decile",
        "outputs": len(verdict.cases),
        "prompts": verdict.prompts_are,
        "reference": {"steps": subject.steps, "seconds": verdict.reference_s},
        "conditions": dict(subject.conditions),
        "speeds": [_speed(verdict, each) for each in verdict.judged],
    }
    return json.dumps(tree, indent=1) + "\n"


def _speed(verdict: Verdict, judged: Judged) -> dict[str, Any]:
    samples = judged.result.samples
    settings = judged.point.settings
    return {
        "speed": judged.speed,
        "holds": judged.holds,
        "faults": faults(judged),
        **judged.point.as_json(),
        "settings_hash": settings.digest() if settings is not None else None,
        "cached_steps": judged.result.cached_steps if samples else None,
        "speedup": 1 / judged.result.median_ratio if samples else None,
        "floors_from": judged.origin,
        "measures": {held.measure: _measure(held) for held in judged.held},
        "drawn": [
            {
                **verdict.cases[index]._asdict(),
                "cached_steps": sample.cached_steps,
                "seconds": sample.seconds,
                **sample.distances,
            }
            for index, sample in samples.items()
        ],
    }


def _measure(held: Held) -> dict[str, Any]:
    return {
        "worst_decile": held.worst_decile,
        "floor": held.floor,
        "holds": held.holds,
        "worst": held.worst,
        "worst_prompt": held.case.prompt,
        "worst_seed": held.case.seed,
    }


def as_junit(verdict: Verdict) -> str:
    """Return the verdict as a suite of JUnit with a case for each speed."""
    suite = ElementTree.Element("testsuite", name=f"cache-dit-serving verify {verdict.subject.name}")
    counts: Counter[str] = Counter()
    for judged in verdict.judged:
        seconds = sum(sample.seconds for sample in judged.result.samples.values())
        case = ElementTree.SubElement(suite, "testcase", classname="speeds", name=judged.speed, time=f"{seconds:.3f}")
        counts["tests"] += 1
        if not judged.holds:
            counts["failures"] += 1
            found = faults(judged)
            ElementTree.SubElement(case, "failure", message=_printable(found[0])).text = _printable("\n".join(found))
    suite.attrib |= {name: str(counts[name]) for name in ("tests", "failures")}
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _printable(text: str) -> str:
    """Return a text without the characters that XML 1.0 cannot hold."""
    return "".join(char if char.isprintable() or char == "\n" else " " for char in text)
