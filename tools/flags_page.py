"""docs/flags.md, from the launcher's table of flags. `python -m tools.flags_page` writes it anew."""

from __future__ import annotations

from cache_dit_serving.cli.flags import Flag, Heading, grouped
from cache_dit_serving.config.variables import CONFIG_VARIABLE
from tests.support.server import ROOT

PAGE = ROOT / "docs" / "flags.md"
HEAD = """\
# The launcher's flags

`cache-dit-serve`, `cache-dit-serving serve` and `python -m cache_dit_serving.serve` are one command. A flag fills a
setting, which a file in `configs/` or a variable of the environment can fill too; flags go over both. The columns on
1.3.5 compare with `cache_dit.serve` as it was last released (cache-dit 1.3.5).
"""


def flags_page() -> str:
    """docs/flags.md."""
    parts = [HEAD]
    for group, flags in grouped():
        title, description = group.value
        parts.append(f"\n## {title}\n\n")
        if description:
            parts.append(f"{description[0].upper()}{description[1:]}.\n\n")
        if group is Heading.OLD:
            parts.append(", ".join(f"`{flag.names[0]}`" for flag in flags) + "\n")
            continue
        parts.append("| flag | aliases | setting | environment | default | default in 1.3.5 | differs |\n")
        parts.append("|---|---|---|---|---|---|---|\n")
        parts += [f"| {' | '.join(_row(flag))} |\n" for flag in flags]
    return "".join(parts)


def _row(flag: Flag) -> tuple[str, ...]:
    variable = flag.variable or (CONFIG_VARIABLE if flag.names[0] == "--config" else None)
    return (
        _name(flag),
        _aliases(flag),
        f"`{flag.leaf}`" if flag.leaf else "the launcher's own",
        f"`{variable}`" if variable else "",
        flag.default_text,
        flag.old_default or "no such flag",
        flag.differs,
    )


def _name(flag: Flag) -> str:
    return f"`{flag.names[0]}`"


def _aliases(flag: Flag) -> str:
    return ", ".join(f"`{name}`" for name in flag.names[1:])


if __name__ == "__main__":
    PAGE.write_text(flags_page(), encoding="utf-8")
