"""Draw the configurations' models at full size, without data; write the footprints and their table.

`python -m tools.full_size` does it for all, `python -m tools.full_size NAME ...` for some, `--table` writes the table
of the footprints that are there.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from cache_dit_serving.config.catalog import config_names
from cache_dit_serving.config.footprints import FILE
from tests.support.vision import add_torchvision


def main(names: list[str]) -> None:
    # Imported here: a process of the pool imports this file before `add_torchvision`, and diffusers must come after.
    from tools.full_size.measure import drawing_of, footprint
    from tools.full_size.table import write_table

    kept: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() and names else {}
    names = names or config_names()
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"), add_torchvision) as pool:
        for name, sizes in zip(names, pool.map(footprint, names, chunksize=8), strict=True):
            kept[name] = sizes
            print(f"weights of {name}", flush=True)
        _write(kept)
        known = sorted((name for name in names if "unknown" not in kept[name]), key=lambda name: _work(kept[name]))
        running = {pool.submit(drawing_of, name): name for name in known}
        for done, future in enumerate(as_completed(running), 1):
            name = running[future]
            kept[name].pop("not_drawn", None)
            kept[name] |= future.result()
            print(f"{done}/{len(known)} {name}: {kept[name].get('not_drawn', 'drawn')}", flush=True)
            _write(kept)
    write_table()


def _work(found: dict[str, Any]) -> int:
    """Return an order of the drawings: the shortest first."""
    pixels: int = found["width"] * found["height"] * found["frames"]
    return pixels


def _write(kept: dict[str, Any]) -> None:
    lines = [f"  {json.dumps(name)}: {json.dumps(kept[name])}" for name in sorted(kept)]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--table"]:
        from tools.full_size.table import write_table

        write_table()
    else:
        main(sys.argv[1:])
