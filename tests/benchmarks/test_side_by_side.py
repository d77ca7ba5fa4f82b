"""The page that stands beside cache_dit.serve: its figures and tables, from requests whose times are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from benchmarks import old_server, vs_page
from benchmarks.side_by_side import NEW, OLD, Pair, Round, latency_table, parts_table, throughput_table, verdict
from benchmarks.vs_cache_dit_serve import another_round
from cache_dit_serving.measure.load.outcome import Outcome


def outcome(number: int, latency_s: float, call_s: float, *, old: bool, error: str | None = None) -> Outcome:
    """Return the request of a client who sends the next one as soon as the last is answered."""
    stages = {"generate": call_s} if old else {"queue": 0.001, "denoise": call_s - 0.1, "decode": 0.1}
    intended = number * latency_s
    return Outcome(
        kind="", intended=intended, sent=intended, ended=intended + latency_s, outputs=1, stages=stages, error=error
    )


def one_client(latencies: Sequence[float], call_s: float, *, old: bool) -> list[Round]:
    return [
        Round([outcome(number, seconds, call_s, old=old) for number in range(4)], cpu_s=8 * seconds)
        for seconds in latencies
    ]


def pair(old: Sequence[float], new: Sequence[float], users: int = 1) -> Pair:
    sides = {OLD: one_client(old, 0.9, old=True), NEW: one_client(new, 0.8, old=False)}
    return Pair(threads=1, users=users, rounds=sides)


def cells(table: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


def test_a_ratio_is_that_of_the_rounds_so_a_machine_that_slows_down_does_not_decide_it() -> None:
    found = pair(old=[1.0, 2.0, 5.0], new=[0.9, 1.8, 4.5]).compare(Round.latency_s)
    assert (found.old, found.new) == pytest.approx((2.0, 1.8))
    assert (found.low, found.ratio, found.high) == pytest.approx((0.9, 0.9, 0.9))


def test_the_tables_have_a_row_a_load_with_its_goal() -> None:
    measured = [pair([1.0, 1.0], [0.9, 0.9]), pair([1.0, 1.0], [0.9, 0.9], users=4)]
    assert cells(latency_table(measured)) == [["1", "1.000", "0.900", "0.900 (0.900 to 0.900)", "met", "8"]]
    assert cells(throughput_table(measured)) == [
        ["1", users, "60.0", "66.7", "1.111 (1.111 to 1.111)", "met", "8"] for users in ("1", "4")
    ]


def test_a_latency_is_the_pipelines_call_and_the_rest_on_both_servers() -> None:
    assert cells(parts_table([pair([1.0], [0.85])])) == [
        ["1", "0.9000", "0.8000", "0.889 (0.889 to 0.889)", "100.0", "50.0"]
    ]


@pytest.mark.parametrize(
    ("new", "goal"),
    [
        ([0.97, 0.96, 0.95], "met"),
        ([0.97, 0.96, 0.99], "met, the rounds disagree"),
        ([0.99, 1.0, 0.97], "**missed**, the rounds disagree"),
        ([0.99, 1.0, 1.01], "**missed**"),
    ],
)
def test_a_goal_that_some_rounds_meet_and_others_miss_is_said_to_be_so(new: list[float], goal: str) -> None:
    assert cells(latency_table([pair([1.0, 1.0, 1.0], new)]))[0][4] == goal


def test_a_missed_goal_has_its_number_and_the_throughput_that_there_is_to_gain() -> None:
    assert verdict([pair([1.0], [0.9])]) == "All goals are met."
    text = verdict([pair([1.0], [0.99]), pair([1.0], [1.0], users=4)])
    assert "- 1 thread, 1 client: latency is 0.990 of the old server's, the goal 0.98." in text
    assert "- 1 thread, 4 clients: throughput is 1.000 of the old server's, the goal 1.05." in text
    assert "1.111 (1 thread)" in text


def test_requests_that_failed_are_not_compared() -> None:
    with pytest.raises(RuntimeError, match="1 requests failed: 429 queue_full"):
        Round([outcome(0, 1.0, 0.9, old=True), outcome(1, 0.01, 0.0, old=True, error="429 queue_full")])


def test_throughput_counts_every_answer_of_a_round() -> None:
    waves = [outcome(0, end, 0.9, old=False) for end in (1.3, 2.0, 3.0, 4.0)]
    assert Round(waves).per_minute() == pytest.approx(60)


def test_a_round_begins_while_the_longest_one_fits_into_the_time_and_two_always_do() -> None:
    assert [another_round(turn, 6, longest_s=40, left_s=-5) for turn in (0, 1, 2)] == [True, True, False]
    assert another_round(2, 6, longest_s=40, left_s=41)
    assert not another_round(6, 6, longest_s=1, left_s=math.inf)


def test_the_page_tells_its_load_and_every_figure() -> None:
    alone, four = pair([1.0], [0.9]), pair([1.0], [0.9], users=4)
    measured = vs_page.Measured(
        same="The same work.",
        pairs=[alone, four],
        shorter={1: one_client([0.25], 0.2, old=False)},
        leaving={"one client, at once": {OLD: [2.0, 3.0, 4.0], NEW: [0.1, 0.2, 0.3]}},
        memory=[vs_page.Memory(1, NEW, 7.0, 2, (700.0, 600.0), (710.0, 610.0))],
        others=vs_page.Others(seconds=10.0, cpu_s=5.0),
    )
    conditions = {"date": "2026-11-28", "machine": "Hardware: one.", "cores": "2", "versions": "cache-dit 1.3.5"}
    page = vs_page.page_of(measured, conditions)
    assert "in turn: 1 round with 1 thread." in page
    assert "Other programs used 0.50 of the 2 cores during the measurement. The machine is shared" in page
    for row in (
        "| 1 | 1.000 | 0.250 | 0.250 (0.250 to 0.250) |",
        "| one client, at once | 3.00 | 0.20 |",
        "| 1 | this server | 7.0 | 2 | 700 (600) | 710 (610) |",
    ):
        assert row in page


def test_the_old_server_runs_on_this_projects_libraries_but_its_own_cache_dit() -> None:
    assert old_server.constraints("cache-dit==1.5.3\ntorch==2.13.0\n# cache-dit\n") == "torch==2.13.0\n# cache-dit\n"
    pins = old_server.REQUIREMENTS.read_text(encoding="utf-8")
    assert len(old_server.constraints(pins)) == len(pins) - len("cache-dit==1.5.3\n")


def test_the_old_server_sees_no_package_of_this_project() -> None:
    environ = {"PYTHONPATH": "/src", "VIRTUAL_ENV": "/venv", "PATH": "/bin"}
    assert old_server.environment(environ) == {"PATH": "/bin"}
