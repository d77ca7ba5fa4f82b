"""Commands that the documentation shows, taken out of its blocks as a shell reads them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")


def lines_of(page: Path) -> list[str]:
    """Return the lines of a page's blocks of bash, continued ones in one, comments included."""
    text = "\n".join(BLOCK.findall(page.read_text(encoding="utf-8")))
    return text.replace("\\\n", " ").splitlines()


def commands_of(page: Path, program: str) -> list[list[str]]:
    """Return the words of each command of a program that a page shows in a block or in its text.

    Variables and `$(...)` stand as they are written. A folder before the program's name is left out, and so is a
    redirection at the end.
    """
    shown = [*lines_of(page), *CODE.findall(BLOCK.sub("", page.read_text(encoding="utf-8")))]
    found = []
    for line in shown:
        if not re.match(rf"(?:[\w./-]+/)?{re.escape(program)} ", line):
            continue
        words = shlex.split(line, comments=True)
        found.append([program, *(words[1 : words.index(">")] if ">" in words else words[1:])])
    return found
