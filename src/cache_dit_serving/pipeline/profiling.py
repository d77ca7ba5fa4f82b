"""Traces of outputs by torch's profiler. Each denoising step is a range, named as cached or computed."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from cache_dit_serving.errors import InvalidRequest, LoadError
from cache_dit_serving.planning.model import AskedToProfile
from cache_dit_serving.private import FILE_MODE, make_folder

if TYPE_CHECKING:
    from cache_dit_serving.config.acceleration import ProfilingSettings

logger = logging.getLogger(__name__)

STEP = re.compile(r"step (\d+)")


class Trace:
    """Trace of one output. This base class records nothing, for an output without a trace."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    def stage(self, name: str) -> None:
        """Begin a stage, and end the one before."""

    def save(self, seed: int, cached_steps: Collection[int]) -> str | None:
        """Write the trace's file; return its name, or None if it was not written."""
        return None


NO_TRACE = Trace()


class Profiler:
    """Writer of traces into the operator's folder, up to its limits on number and bytes."""

    def __init__(self, settings: ProfilingSettings, device: torch.device) -> None:
        """
        Raises:
            LoadError: the folder cannot be made, or only the GPU is to be traced and there is none.
        """
        self._settings = settings
        self._written = self._bytes = 0
        self._activities = [torch.profiler.ProfilerActivity.CPU] if "cpu" in settings.activities else []
        if "gpu" in settings.activities and device.type == "cuda":
            self._activities.append(torch.profiler.ProfilerActivity.CUDA)
        if settings.requests == "none":
            return
        if not self._activities:
            raise LoadError(f"profiling.activities: there is no GPU to profile on {device}; add cpu")
        try:
            make_folder(settings.folder.expanduser())
        except OSError as error:
            raise LoadError("profiling.folder cannot be made on the server") from error

    def trace(self, asked: AskedToProfile) -> Trace:
        """Return the trace of the coming output; `NO_TRACE` if it is not traced.

        Raises:
            InvalidRequest: the request has `profile: true`, and a limit on traces is reached.
        """
        if asked is AskedToProfile.NO:
            return NO_TRACE
        if (most := self._most()) is not None:
            if asked is AskedToProfile.BY_REQUEST:
                raise InvalidRequest(f"profile: this server has written the {most} that it may", param="profile")
            return NO_TRACE
        self._written += 1
        return _Recorded(self._settings, self._activities, self._count)

    def _most(self) -> str | None:
        """Return the reached limit in words; None if another trace may be written."""
        if self._written >= self._settings.max_traces:
            return f"{self._settings.max_traces:,} traces"
        return f"{self._settings.max_bytes:,} bytes of traces" if self._bytes >= self._settings.max_bytes else None

    def _count(self, size: int) -> None:
        """Add the bytes of a written trace; warn in the log when a limit is reached."""
        self._bytes += size
        if (most := self._most()) is not None:
            logger.warning("the %s of profiling are written: no more until the next start", most)


class _Recorded(Trace):
    """Trace that torch's profiler records."""

    def __init__(self, settings: ProfilingSettings, activities: list[Any], count: Callable[[int], None]) -> None:
        self._settings = settings
        self._count = count
        self._profile = torch.profiler.profile(
            activities=activities, record_shapes=settings.record_shapes, with_stack=settings.with_stack
        )
        self._range: Any = None

    def __enter__(self) -> Self:
        self._profile.__enter__()
        self.stage("encode prompt")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()
        self._profile.__exit__(kind, error, traceback)

    def stage(self, name: str) -> None:
        self._end()
        self._range = torch.profiler.record_function(name)
        self._range.__enter__()

    def _end(self) -> None:
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None

    def save(self, seed: int, cached_steps: Collection[int]) -> str | None:
        name = f"{self._settings.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{time.monotonic_ns()}-{seed}.json"
        folder = self._settings.folder.expanduser()
        try:
            # torch makes the file with the mode of the umask, hence a folder that is the server's alone.
            with TemporaryDirectory(prefix=".trace-", dir=folder) as private:
                unfinished = Path(private) / name
                self._profile.export_chrome_trace(str(unfinished))
                unfinished.chmod(FILE_MODE)
                _name_steps(unfinished, cached_steps)
                self._count(unfinished.stat().st_size)
                unfinished.rename(folder / name)
        except OSError:
            logger.exception("the trace could not be written")
            return None
        return name


def _name_steps(file: Path, cached_steps: Collection[int]) -> None:
    """Add "cached" or "computed" to the name of each step in a trace's file.

    A range is named when its step begins, before the cache has decided.
    """
    trace = json.loads(file.read_text(encoding="utf-8"))
    for event in trace["traceEvents"]:
        if (step := STEP.fullmatch(str(event.get("name")))) is not None:
            event["name"] += " cached" if int(step[1]) in cached_steps else " computed"
    file.write_text(json.dumps(trace), encoding="utf-8")
