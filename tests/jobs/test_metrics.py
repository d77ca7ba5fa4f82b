"""Series of several models, which do not overwrite each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from cache_dit_serving.jobs import metrics

NAMES = ("flux of the test", "qwen of the test")


@pytest.fixture(autouse=True)
def started() -> Iterator[None]:
    for name in NAMES:
        metrics.start_series_of(name)
    yield
    for name in NAMES:
        metrics.tell_sleep(name, None, 0)


def value(metric: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"cache_dit_serving_{metric}", labels)


@pytest.mark.parametrize("name", NAMES)
def test_the_series_of_each_model_are_there_before_the_first_event(name: str) -> None:
    assert value("generations_total", outcome="succeeded", speed="fast", model=name) == 0
    assert value("images_total", engaged="false", reason="off", speed="high", model=name) == 0
    assert value("switches_total", model=name) == 0
    assert value("shadow_waiting", model=name) == 0


def test_the_sleep_of_one_model_leaves_that_of_another_as_it_is() -> None:
    first, second = NAMES
    metrics.tell_sleep(first, "host", 100)
    metrics.tell_sleep(second, "disk", 7)
    assert (value("asleep", level="host", model=first), value("asleep", level="disk", model=first)) == (1, 0)
    assert (value("asleep", level="host", model=second), value("asleep", level="disk", model=second)) == (0, 1)
    metrics.tell_sleep(second, None, 0)
    assert value("asleep", level="host", model=first) == 1
    assert (value("asleep_freed_bytes", model=first), value("asleep_freed_bytes", model=second)) == (100, 0)


def test_all_metrics_of_a_model_have_its_name_last() -> None:
    of_models = [
        each
        for each in vars(metrics).values()
        if isinstance(each, Counter | Gauge | Histogram) and "model" in each._labelnames
    ]
    assert len(of_models) > 15
    assert all(each._labelnames[-1] == "model" for each in of_models)
