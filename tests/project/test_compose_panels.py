"""The dashboard's queries as `make compose-check` sends them to Prometheus."""

from __future__ import annotations

import pytest
import yaml

from tests.support.server import ROOT
from tools.compose.panels import VARIABLES, dashboard, queries, without_values


def test_each_query_has_grafanas_values_in_the_place_of_its_variables() -> None:
    asked = queries(dashboard())
    assert asked
    assert not any("$" in expression for _, expression in asked)


def test_a_variable_without_a_value_is_named() -> None:
    panel = {"title": "Queue", "targets": [{"expr": "sum(waiting{zone=~'$zone'})"}]}
    with pytest.raises(ValueError, match=r"Queue: \$zone has no value here"):
        queries({"panels": [panel]})


def test_the_values_are_those_of_the_dashboard_and_of_the_scrapes() -> None:
    [instance] = [each for each in dashboard()["templating"]["list"] if each["name"] == "instance"]
    assert VARIABLES["$instance"] == instance["allValue"]
    scrapes = yaml.safe_load((ROOT / "deploy" / "compose" / "prometheus.yaml").read_text())["global"]
    assert VARIABLES["$__rate_interval"] == f"{4 * int(scrapes['scrape_interval'].removesuffix('s'))}s"


def test_a_panel_is_empty_if_none_of_its_queries_has_a_number() -> None:
    asked = [("Queue", "waiting"), ("Queue", "most"), ("Memory", "peak"), ("Deadlines", "missed")]
    series = {"waiting": [], "most": [{"value": [0, "1"]}], "peak": [{"value": [0, "NaN"]}], "missed": []}
    assert without_values(asked, series.__getitem__) == {"Memory", "Deadlines"}
