"""The panels of docs/grafana-dashboard.json, whose queries are sent to Prometheus as Grafana sends them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parents[2] / "docs" / "grafana-dashboard.json"
VARIABLES = {"$__rate_interval": "60s", "$instance": ".*"}
"""Grafana's values: four scrapes of deploy/compose/prometheus.yaml, and the variable's `allValue`."""


def queries(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the title and the expression of each query of each panel, with Grafana's variables replaced.

    Raises:
        ValueError: A variable is left, whose value is not known here.
    """
    found = []
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            if left := re.search(r"\$\w+", expression):
                raise ValueError(f"{panel['title']}: {left[0]} has no value here")
            found.append((panel["title"], expression))
    return found


def without_values(asked: Iterable[tuple[str, str]], answer: Callable[[str], list[Any]]) -> set[str]:
    """Return the titles of panels of which no query has a series with a number.

    Args:
        answer: Series of Prometheus for an expression, as its API writes them: a value of "NaN" shows nothing.
    """
    numbers: dict[str, int] = {}
    for title, expression in asked:
        shown = [each for each in answer(expression) if each["value"][1] != "NaN"]
        numbers[title] = numbers.get(title, 0) + len(shown)
    return {title for title, count in numbers.items() if count == 0}


def dashboard() -> dict[str, Any]:
    """Return the provisioned dashboard."""
    read: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return read
