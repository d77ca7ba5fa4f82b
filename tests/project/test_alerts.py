"""The alert rules: they fire when they should, by Prometheus itself, and ask for metrics that there are."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.promtool import needs_promtool

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "docs" / "alerts.yaml"


@needs_promtool
@pytest.mark.parametrize(
    "words", [("check", "rules", str(RULES)), ("test", "rules", str(Path(__file__).with_name("alerts_test.yaml")))]
)
def test_prometheus_takes_the_rules_and_they_fire_as_they_should(words: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_rule_has_a_runbook_and_metrics_that_there_are() -> None:
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    page = (ROOT / "docs" / "alerts.md").read_text()
    metrics = (ROOT / "docs" / "metrics.md").read_text()
    assert len(group["rules"]) == 9
    for rule in group["rules"]:
        assert f"\n## {rule['alert']}\n" in page
        assert rule["annotations"]["runbook_url"] == f"alerts.md#{rule['alert'].lower()}"
        for name in re.findall(r"cache_dit_serving_[a-z_]+", rule["expr"]):
            assert f"`{name}`" in metrics
