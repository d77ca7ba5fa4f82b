"""The parser of every command: short usage, and for a flag that there is none of the one that is spelt most like it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from cache_dit_serving.findings import cut, nearest_key


class CommandLine(argparse.ArgumentParser):
    """A parser of flags in full: `--warmup` is not short for `--warmup-interval`."""

    def __init__(self, command: str, usage: str, description: str) -> None:
        """
        Args:
            command: as it is typed, such as `cache-dit-serving serve`.
            usage: what follows it, in a few words.
        """
        super().__init__(
            prog=command,
            usage=f"{command} {usage}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    # argparse's own is overloaded by the type of the namespace, which no caller here gives.
    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse; end the process with status 2 on a word that is no flag and no argument."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._unknown(unknown))
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n{self.prog} --help lists the flags\n")

    def _unknown(self, words: Sequence[str]) -> str:
        """The first flag among words that were not understood, with the nearest there is; without one, all words."""
        flag = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
        if flag is None:
            return f"one argument too many: {' '.join(map(cut, words))}; put quotes around a text of several words"
        shown: list[Any] = [action for action in self._actions if action.help != argparse.SUPPRESS]
        # Without dashes, which every two flags share.
        names = {name.lstrip("-"): name for action in shown for name in action.option_strings}
        nearest = nearest_key(flag.lstrip("-"), list(names))
        return f"there is no flag {cut(flag)}" + (f"; did you mean {names[nearest]}?" if nearest else "")
