"""The `cache-dit-serving` command. Each sub-command is a module's `main`."""

from __future__ import annotations

import sys
from importlib import import_module

from cache_dit_serving import __version__
from cache_dit_serving.findings import cut, nearest_key

COMMANDS = {
    "serve": "serve",
    "generate": "generate",
    "join": "join",
    "models": "models",
    "inspect": "inspect",
    "bench": "bench",
    "config": "show_config",
    "tune": "tune",
    "verify": "verify",
}
"""Module of each command, which is imported for that command alone: most of them take seconds."""
USAGE = """\
usage: cache-dit-serving COMMAND [flags]

  serve    serve a model with BentoML (cache-dit-serving serve --help lists the flags)
  generate draw into files, without a server
  join     run a part of a model on this machine for a server on another one
  models   list the models that a configuration knows, and which of them fit this machine
  inspect  say what a folder, a file of weights, a LoRA or a hub id is, and how to serve it
  bench    measure a running server under load, and compare two measurements
  tune     search the cache settings of a model, with fewer steps as the baseline to beat
  verify   hold the speeds of a configuration to their floors, for CI
  config   print the settings that serve would have with the same flags, and where each value comes from

  --version, --help

  examples:
    cache-dit-serving generate "a red apple on a blue background" --seed 7 -o apple.png
    cache-dit-serving serve --config embedded --port 3000
"""


def main() -> int:
    """Dispatch on the first word. Return exit status 2 for an unknown command."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in COMMANDS:
        status: int = import_module(f"cache_dit_serving.cli.{COMMANDS[command]}").main(arguments)
        return status
    if command == "--version":
        print(__version__)
        return 0
    if command in ("--help", "-h"):
        print(USAGE, end="")
        return 0
    nearest = nearest_key(command, list(COMMANDS))
    hint = f"; did you mean {nearest}?" if nearest else ""
    print(f"error: there is no command {cut(command)}{hint}\n\n{USAGE}", end="", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
