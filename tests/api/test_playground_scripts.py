"""The playground's computations, run by node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_dit_serving.measure.distances.flip import flip
from tests.support.reference_pictures import PAIRS

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="no node on PATH")
SCRIPTS = Path(__file__).parents[2] / "src/cache_dit_serving/api/static/ui"


def run(code: str, folder: Path) -> Any:
    """What a module prints, as JSON."""
    command = ["node", "--input-type=module", "-e", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return json.loads(printed.stdout)


def test_flip_of_the_page_is_that_of_flip_evaluator(tmp_path: Path) -> None:
    sizes, expected = {}, {}
    for number, (name, pair) in enumerate(PAIRS.items()):
        ours, reference = ((255 * picture).round().astype(np.uint8) for picture in pair)
        expected[name] = flip(ours, reference)
        height, width, _ = ours.shape
        sizes[name] = [number, width, height]
        for side, picture in enumerate((ours, reference)):
            opaque = np.dstack([picture, np.full((height, width), 255, np.uint8)])
            (tmp_path / f"{number}-{side}").write_bytes(opaque.tobytes())
    code = f"""
    import {{ readFileSync }} from "node:fs";
    import {{ flip }} from {json.dumps((SCRIPTS / "flip.js").as_uri())};
    const found = {{}};
    for (const [name, [number, width, height]] of Object.entries({json.dumps(sizes)})) {{
      const picture = (side) => ({{ data: readFileSync(`${{number}}-${{side}}`), width, height }});
      const [ours, reference] = [picture(0), picture(1)];
      found[name] = [flip(ours, reference), flip(ours, ours)];
    }}
    console.log(JSON.stringify(found));
    """
    found = run(code, tmp_path)
    assert {name: apart for name, (apart, _) in found.items()} == pytest.approx(expected, abs=1e-3)
    assert {same for _, same in found.values()} == {0}


def test_the_forecast_agrees_with_the_run_it_comes_from(tmp_path: Path) -> None:
    code = f"""
    import {{ forecast }} from {json.dumps((SCRIPTS / "forecast.js").as_uri())};
    const diffs = [undefined, undefined, .1, .15, .3, .1, .4];
    const rule = {{ threshold: .2, warmup: 2, most: -1, total: -1 }};
    const of = (change) => [...forecast(diffs, new Set([2, 3, 5]), {{ ...rule, ...change }})];
    const changes = [{{}}, {{ threshold: .12 }}, {{ most: 1 }}, {{ total: 1 }}, {{ threshold: 9 }}];
    console.log(JSON.stringify(changes.map(of)));
    """
    assert run(code, tmp_path) == [[2, 3, 5], [2, 5], [2, 4], [2], [2, 3, 4, 5, 6]]
