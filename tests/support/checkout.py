"""Copies of the repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.server import ROOT


def copy_of_sources(folder: Path, leave_out: tuple[str, ...] = ()) -> None:
    """Fill a folder with the tracked and the new files of the repository.

    Args:
        leave_out: top folders of the repository.
    """
    others = [f":!{name}" for name in (".venv", *leave_out)]
    listed = ["git", "ls-files", "-co", "--exclude-standard", "--", *others]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():  # else removed, and not yet committed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def link_environment(venv: Path) -> None:
    """Give a copy of the repository this process's environment, in the state in which `make setup` leaves one."""
    venv.mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (venv / part).symlink_to(Path(sys.prefix) / part)
    # In this order: make compares their times.
    for stamp in (".created", ".installed"):
        (venv / stamp).touch()
