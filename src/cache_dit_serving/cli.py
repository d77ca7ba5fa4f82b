"""The `cache-dit-serving` command: sub-commands, each a module's main."""

from __future__ import annotations

import sys

from cache_dit_serving import __version__, serve
from cache_dit_serving.config.reading import CONFIGS, config_names

USAGE = """\
usage: cache-dit-serving COMMAND [flags]

  serve    serve a model with BentoML (cache-dit-serving serve --help lists the flags)
  models   list the configurations in configs/

  --version, --help
"""


def main() -> int:
    """Dispatch on the first word; exit status 2 for one that is no command."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command == "serve":
        serve.main(arguments)
    if command == "models":
        for name in config_names():
            print(f"{name:16} {_summary(name)}")
        return 0
    if command == "--version":
        print(__version__)
        return 0
    if command in ("--help", "-h"):
        print(USAGE, end="")
        return 0
    print(f"unknown command {command!r}\n\n{USAGE}", end="", file=sys.stderr)
    return 2


def _summary(name: str) -> str:
    """The first comment line of a configuration."""
    lines = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return lines[0].removeprefix("# ") if lines and lines[0].startswith("#") else ""
