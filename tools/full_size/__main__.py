"""Draw the configurations' models at full size, without data; write the footprints and their table.

`python -m tools.full_size` draws the models whose shapes or defaults are not those of their row, and those that have
none. A row is written as soon as it is drawn.
"""

from __future__ import annotations

import argparse
import json
import resource
from concurrent.futures import as_completed
from typing import Any

from cache_dit_serving.config.catalog import config_names
from cache_dit_serving.config.footprints import FILE
from tests.support.vision import add_torchvision
from tools.full_size.process import pool


def main() -> None:
    """Draw what the arguments name, write the rows, and print the CPU seconds of it all."""
    parser = argparse.ArgumentParser(prog="python -m tools.full_size", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a configuration to draw, its row current or not")
    parser.add_argument("--all", action="store_true", help="draw all configurations")
    parser.add_argument("--table", action="store_true", help="draw none: write the table of the footprints")
    parser.add_argument("--print", action="store_true", help="print the rows of NAME ... and write nothing")
    parser.add_argument("--processes", type=int, default=2, help="models drawn at once (default: %(default)s)")
    arguments = parser.parse_args()
    add_torchvision()
    # Imported here: diffusers must come after `add_torchvision`.
    from tools.full_size.measure import footprint, inputs
    from tools.full_size.models import SHAPES
    from tools.full_size.table import write_table

    kept: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    kept = {name: kept[name] for name in config_names() if name in kept}

    def is_current(name: str) -> bool:
        if name in SHAPES["unknown"]:
            return kept.get(name) == {"unknown": SHAPES["unknown"][name]}
        return kept.get(name, {}).get("inputs") == inputs(name)

    if not arguments.table:
        chosen: list[str] = arguments.names or (config_names() if arguments.all else [])
        due = chosen or [name for name in config_names() if not is_current(name)]
        with pool(arguments.processes) as drawing:
            running = {drawing.submit(footprint, name): name for name in due}
            for done, future in enumerate(as_completed(running), 1):
                name = running[future]
                kept[name] = future.result()
                failed = kept[name].get("not_drawn") or kept[name].get("unknown")
                if arguments.print:
                    print(json.dumps({name: kept[name]}), flush=True)
                else:
                    _write(kept)
                    print(f"{done}/{len(due)} {name}: {failed or 'drawn'}", flush=True)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"{used.ru_utime + used.ru_stime:.0f} CPU seconds")
    if not arguments.print:
        write_table()


def _write(kept: dict[str, Any]) -> None:
    lines = [f"  {json.dumps(name)}: {json.dumps(kept[name])}" for name in sorted(kept)]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
