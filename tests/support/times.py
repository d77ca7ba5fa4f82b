"""A pytest plugin that writes where the time of a run goes: `python -m pytest -p tests.support.times --times FILE`.

One row a module: wall seconds; CPU seconds of the test process and of its children, those that it shares with other
modules too; servers that were started; processes that held torch.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import server
from tests.support.forked import warm_process
from tests.support.yardstick import Yardstick

LOOK_S = 1.0
"""Between two looks at the descendants of the test process."""
TORCH = "libtorch_cpu"


@dataclass
class Times:
    """Sums of a module."""

    tests: int = 0
    wall: float = 0.0
    own: float = 0.0
    children: float = 0.0
    servers: int = 0
    torch: int = 0

    def add(self, other: Times) -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


class Recorder:
    """Times the tests of one pytest process, of which xdist starts several."""

    def __init__(self) -> None:
        self.modules: defaultdict[str, Times] = defaultdict(Times)
        self._began = time.monotonic()
        self._last_end = self._began
        self._module = ""
        self._living_cpu_s = 0.0
        """Of the children that lived as the module began: what they took before it is not the module's."""
        self._seen = {os.getpid()}
        self._torch: Counter[str] = Counter()
        threading.Thread(target=self._watch, daemon=True, name="torch-processes").start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[Any]:
        module = str(item.path.relative_to(item.config.rootpath))
        if module != self._module:
            self._module, self._living_cpu_s = module, living_cpu_s()
        wall, own, children, servers = self._clocks()
        try:
            return (yield)
        finally:
            ends = self._clocks()
            taken = Times(1, ends[0] - wall, ends[1] - own, ends[2] - children, int(ends[3] - servers))
            if nextitem is None or nextitem.path != item.path:
                # A look at all descendants takes milliseconds: one at either end of a module.
                taken.children += living_cpu_s() - self._living_cpu_s
            self.modules[module].add(taken)
            self._last_end = ends[0]

    def result(self) -> dict[str, Any]:
        """Plain data, as xdist carries it from a worker to its controller."""
        for module, count in self._torch.items():
            self.modules[module].torch = count
        modules = {module: asdict(times) for module, times in self.modules.items()}
        return {"modules": modules, "began": self._began, "busy_until": self._last_end}

    @staticmethod
    def _clocks() -> tuple[float, float, float, float]:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        forked = warm_process().ended_cpu_s if warm_process.cache_info().currsize else 0.0
        children = ended.ru_utime + ended.ru_stime + forked
        return time.monotonic(), time.process_time(), children, server.STARTED.count

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_S)
            for pid in descendants():
                if pid not in self._seen and _holds_torch(pid):
                    self._seen.add(pid)
                    self._torch[self._module] += 1


def descendants() -> Iterator[int]:
    """The processes below this one, and those that were forked for it with theirs."""
    forked = warm_process().forked if warm_process.cache_info().currsize else []
    for root in (os.getpid(), *forked):
        with suppress(psutil.Error, OSError):  # gone meanwhile
            yield root
            yield from (process.pid for process in psutil.Process(root).children(recursive=True))


def living_cpu_s() -> float:
    """Seconds of CPU that the descendants have taken that live, and the children that they have waited for."""
    taken = 0.0
    for pid in descendants():
        with suppress(psutil.Error, OSError):
            times = psutil.Process(pid).cpu_times()
            taken += sum(times[:4]) if pid != os.getpid() else 0.0
    return taken


def _holds_torch(pid: int) -> bool:
    try:
        return TORCH in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


class Table:
    """Gathers what the recorders found, and writes it when the run ends."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._began = time.monotonic()
        self._before = cores()
        self._yardstick = Yardstick()
        self._results: list[dict[str, Any]] = []

    def take(self, result: dict[str, Any]) -> None:
        self._results.append(result)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        if result := getattr(node, "workeroutput", {}).get("times"):
            self.take(result)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        passed = len(terminalreporter.getreports("passed"))
        idle, stolen, taken = (after - before for after, before in zip(cores(), self._before, strict=True))
        shares = f"The cores were idle for {100 * idle / taken:.0f} % of the run, and others had them for "
        shares += f"{100 * stolen / taken:.0f} %: what else the machine's host runs. {self._yardstick.sentence()}"
        self._file.write_text(page(self._results, self._began, passed, shares), encoding="utf-8")
        terminalreporter.write_line(f"wrote {self._file}")


def cores() -> tuple[float, float, float]:
    """Seconds since the machine started that its cores have idled, that its host gave to others, and in all."""
    times = psutil.cpu_times()
    # Those after the eighth are parts of the first ones.
    return times.idle + times.iowait, times.steal, sum(times[:8])


def page(results: list[dict[str, Any]], began: float, passed: int, shares: str) -> str:
    """The table in Markdown, by room and by module, the longest first.

    Args:
        shares: sentences on how busy and how fast the cores were.
    """
    rooms: defaultdict[str, Times] = defaultdict(Times)
    modules: defaultdict[str, Times] = defaultdict(Times)
    for result in results:
        for module, fields in result["modules"].items():
            times = Times(**fields)
            modules[module.removeprefix("tests/")].add(times)
            parts = Path(module).parts
            rooms[parts[1] if len(parts) > 2 else "(top)"].add(times)
    total = Times()
    for times in rooms.values():
        total.add(times)
    whole = time.monotonic() - began
    idle = max((began + whole - result["busy_until"] for result in results), default=0.0)
    head = (
        f"{passed:,} passed in {whole:.0f} s ({datetime.now(UTC).date().isoformat()}, {len(results)} processes, "
        f"{os.cpu_count()} cores). The process that was done first idled for {idle:.0f} s, {100 * idle / whole:.0f} %. "
        f"{shares}"
    )
    return "\n\n".join([head, _table("room", {**rooms, "all": total}), _table("module", modules)]) + "\n"


def _table(what: str, rows: dict[str, Times] | defaultdict[str, Times]) -> str:
    lines = [f"| {what} | tests | s | CPU s | CPU s of children | servers | torch processes |", "|---|" + "---|" * 6]
    for name, each in sorted(rows.items(), key=lambda row: -row[1].wall):
        lines.append(
            f"| {name} | {each.tests} | {each.wall:.0f} | {each.own:.0f} | {each.children:.0f} | {each.servers} "
            f"| {each.torch} |"
        )
    return "\n".join(lines)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--times", type=Path, metavar="FILE", help="write the seconds of each module to this file")


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("--times")
    if file is None:
        return
    is_worker = hasattr(config, "workerinput")
    distributes = not is_worker and config.getoption("numprocesses", None)
    table = None
    if not is_worker:
        table = Table(file)
        config.pluginmanager.register(table, "times-table")
    if not distributes:
        recorder = Recorder()
        config.pluginmanager.register(recorder, "times-recorder")
        config.pluginmanager.register(_Handing(config, recorder, table), "times-handing")


class _Handing:
    """Hands what a recorder found to the table: over xdist's wire from a worker."""

    def __init__(self, config: pytest.Config, recorder: Recorder, table: Table | None) -> None:
        self._config, self._recorder, self._table = config, recorder, table

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        result = self._recorder.result()
        if self._table is None:
            self._config.workeroutput["times"] = result  # type: ignore[attr-defined]
        else:
            self._table.take(result)
