"""FLIP: the difference that an observer sees between two pictures shown in turn (Andersson et al. 2020)."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np

from cache_dit_serving.measure.distances.pixels import Pixels, floats, same_shape

Flip = Callable[[Pixels, Pixels], float]
"""FLIP of a picture against its reference."""
PROCESS = Path(__file__).with_name("flip_process.py")
INHERITED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT")
"""Environment variables that the child inherits. Others may hold keys and passwords."""


class FlipEnded(RuntimeError):
    """The process that computes FLIP ended before it answered."""


def flip(ours: Pixels, reference: Pixels) -> float:
    """Return the mean of LDR-FLIP, 0 (equal) to 1; NaN for values that are not finite.

    It holds the interpreter: servers use :class:`FlipProcess`. The observer is at the package's default distance: 67
    pixels per degree, a 4K monitor 0.7 m wide seen from 0.7 m.

    Raises:
        ValueError: the shapes differ.
    """
    import flip_evaluator

    same_shape(ours, reference)
    if not _finite(ours, reference):
        return math.nan
    _, mean, _ = flip_evaluator.evaluate(_clipped(reference), _clipped(ours), "LDR", applyMagma=False)
    return float(mean)


class FlipProcess:
    """FLIP, computed in a child process. One thread may call it at a time.

    flip_evaluator 1.7 keeps the interpreter's lock for its whole run, seconds for a picture of 1024 px: no heart-beat,
    health check or other request gets a turn. Its OpenMP threads would also stay in the server's process.
    """

    def __init__(self) -> None:
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(PROCESS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C goes to the terminal's whole foreground group; this process ends with its input
            env=inherited | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def __call__(self, ours: Pixels, reference: Pixels) -> float:
        """Return FLIP as :func:`flip` does.

        Raises:
            ValueError: the shapes differ.
            FlipEnded: the child ended.
        """
        same_shape(ours, reference)
        if not _finite(ours, reference):
            return math.nan
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(reference.shape).encode() + b"\n")
            for picture in (reference, ours):
                self._process.stdin.write(_clipped(picture).tobytes())
            self._process.stdin.flush()
        except OSError as error:
            raise FlipEnded("FLIP's process ended") from error
        answer = self._process.stdout.readline()
        if not answer:
            raise FlipEnded("FLIP's process ended")
        return float(answer)

    def __enter__(self) -> FlipProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


def _finite(ours: Pixels, reference: Pixels) -> bool:
    """Return True if all values are finite: flip_evaluator 1.7 takes a pixel that is NaN for one without difference."""
    return bool(np.isfinite(ours).all() and np.isfinite(reference).all())


def _clipped(picture: Pixels) -> Pixels:
    """Return contiguous float32 in [0, 1], which flip_evaluator takes."""
    return np.ascontiguousarray(np.clip(floats(picture), 0, 1), dtype=np.float32)
