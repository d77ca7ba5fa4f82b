"""The machine's compiler, which torch.compile and Triton call as a kernel first runs."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path
from typing import Literal

PROGRAMS = {"C": ("CC", "gcc", "clang"), "C++": ("CXX", "g++", "clang++")}
"""Variable that names the compiler of a language, its usual name, and that of another one."""


def missing_for(language: Literal["C", "C++"]) -> str | None:
    """Return the part without which no kernel is built, in words; None: all are there."""
    variable, usual, other = PROGRAMS[language]
    if not any(map(shutil.which, (os.environ.get(variable, usual), other))):
        return f"{language} compiler ({usual})"
    # Kernels include it. Debian's Python comes without.
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python.h (in Debian's python3-dev)"
    return None
