"""Draw the configurations' models at full size, without data; write the footprints and their table.

`python -m tools.full_size` draws the models whose shapes or defaults are not those of their row, and those that have
none; `--all` draws all, `NAME ...` some, `--table` writes the table of the footprints that are there. A row is written
as soon as it is drawn.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from cache_dit_serving.config.catalog import config_names
from cache_dit_serving.config.footprints import FILE
from tests.support.vision import add_torchvision

PROCESSES = 2


def main(arguments: list[str]) -> None:
    # Imported here: a process of the pool imports this file before `add_torchvision`, and diffusers must come after.
    from tools.full_size.measure import footprint, inputs
    from tools.full_size.models import SHAPES
    from tools.full_size.table import write_table

    kept: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    kept = {name: kept[name] for name in config_names() if name in kept}

    def is_current(name: str) -> bool:
        if name in SHAPES["unknown"]:
            return kept.get(name) == {"unknown": SHAPES["unknown"][name]}
        return kept.get(name, {}).get("inputs") == inputs(name)

    if "--table" not in arguments:
        names = [name for name in arguments if name != "--all"] or config_names()
        due = [name for name in names if arguments or not is_current(name)]
        with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn"), _prepare) as pool:
            running = {pool.submit(footprint, name): name for name in due}
            for done, future in enumerate(as_completed(running), 1):
                name = running[future]
                kept[name] = future.result()
                _write(kept)
                failed = kept[name].get("not_drawn") or kept[name].get("unknown")
                print(f"{done}/{len(due)} {name}: {failed or 'drawn'}", flush=True)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"{used.ru_utime + used.ru_stime:.0f} CPU seconds")
    write_table()


def _prepare() -> None:
    """Prepare a process of the pool."""
    add_torchvision()
    from tools.full_size.measure import prepare_process

    prepare_process()


def _write(kept: dict[str, Any]) -> None:
    lines = [f"  {json.dumps(name)}: {json.dumps(kept[name])}" for name in sorted(kept)]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    add_torchvision()
    main(sys.argv[1:])
