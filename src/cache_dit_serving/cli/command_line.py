"""Parser of every command: short usage, and a suggestion for a misspelt flag."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from cache_dit_serving.findings import cut, nearest_key


class CommandLine(argparse.ArgumentParser):
    """Parser without abbreviated flags: `--warmup` is not short for `--warmup-interval`."""

    def __init__(self, command: str, usage: str, description: str) -> None:
        """
        Args:
            command: command as typed, such as `cache-dit-serving serve`.
            usage: its arguments, in a few words.
        """
        super().__init__(
            prog=command,
            usage=f"{command} {usage}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    # argparse overloads it by the type of the namespace, which no caller here passes.
    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse the arguments. A word that is neither a flag nor an argument ends the process with status 2."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._unknown(unknown))
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n{self.prog} --help lists the flags\n")

    def _unknown(self, words: Sequence[str]) -> str:
        """Return the error for unknown words: the first unknown flag with the nearest known one, or else all words."""
        flag = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
        if flag is None:
            return f"one argument too many: {' '.join(map(cut, words))}; put quotes around a text of several words"
        shown: list[Any] = [action for action in self._actions if action.help != argparse.SUPPRESS]
        # Compared without dashes, which any two flags share.
        names = {name.lstrip("-"): name for action in shown for name in action.option_strings}
        nearest = nearest_key(flag.lstrip("-"), list(names))
        return f"there is no flag {cut(flag)}" + (f"; did you mean {names[nearest]}?" if nearest else "")
