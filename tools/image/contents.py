"""What lies in the image's file system: what must not, and what takes the room."""

from __future__ import annotations

import os
import re
from pathlib import Path

COMPILERS = {"cc", "gcc", "g++", "clang", "clang++", "cc1", "ld", "make", "git"}
_SECRET = re.compile(
    r"(^|/)(\.env|\.netrc|\.pypirc|id_(rsa|ed25519)|\.git-credentials|credentials\.json)$|/deploy/keys/"
)
_BENTO = "home/bentoml/bento/src/"


def unwanted(names: list[str], *, compiler: bool = False) -> list[str]:
    """Return the names that should not be in an image.

    Args:
        names: Files and folders, relative to the image's root.
        compiler: Whether one was asked for.
    """
    return sorted(name for name in names if _reason(name, compiler=compiler))


def _reason(name: str, *, compiler: bool) -> bool:
    base = name.rsplit("/", 1)[-1]
    program = re.match(r"(usr/)?(local/)?s?bin/", name) and base in COMPILERS
    return bool(
        (program and not (compiler and base != "git"))
        or base == ".git"
        or _SECRET.search("/" + name)
        or name.startswith((f"{_BENTO}tests", f"{_BENTO}.git", f"{_BENTO}deploy"))
        or name.startswith("root/.cache/")
    )


def names_below(root: Path) -> list[str]:
    """Return every file and folder, relative to the root. Links are not followed."""
    found = []
    for folder, folders, files in os.walk(root):
        found += [os.path.relpath(os.path.join(folder, name), root) for name in folders + files]
    return found


def biggest_packages(site: Path, count: int = 20) -> list[tuple[str, int]]:
    """Return the folders of site-packages that take most, with their bytes; hard links count once."""
    sizes = {entry.name: _size(entry) for entry in site.iterdir() if entry.is_dir()}
    return sorted(sizes.items(), key=lambda pair: -pair[1])[:count]


def _size(folder: Path) -> int:
    seen: dict[int, int] = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            stat = path.stat()
            seen[stat.st_ino] = stat.st_size
    return sum(seen.values())
