"""The playground's computations, run by node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cache_dit_serving.measure.distances.flip import flip
from tests.support.reference_pictures import PAIRS

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="no node on PATH")
SCRIPTS = Path(__file__).parents[2] / "src/cache_dit_serving/api/static/ui"


@pytest.mark.parametrize("name", PAIRS)
def test_flip_of_the_page_is_that_of_flip_evaluator(name: str, tmp_path: Path) -> None:
    module = SCRIPTS / "flip.js"
    ours, reference = ((255 * picture).round().astype(np.uint8) for picture in PAIRS[name])
    height, width, _ = ours.shape
    for file, picture in (("ours", ours), ("reference", reference)):
        (tmp_path / file).write_bytes(np.dstack([picture, np.full((height, width), 255, np.uint8)]).tobytes())
    code = f"""
    import {{ readFileSync }} from "node:fs";
    import {{ flip }} from {json.dumps(module.as_uri())};
    const picture = (file) => ({{ data: readFileSync(file), width: {width}, height: {height} }});
    console.log(flip(picture("ours"), picture("reference")), flip(picture("ours"), picture("ours")));
    """
    command = ["node", "--input-type=module", "-e", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    apart, same = (float(word) for word in run.stdout.split())
    assert apart == pytest.approx(flip(ours, reference), abs=1e-3)
    assert same == 0


def test_the_forecast_agrees_with_the_run_it_comes_from() -> None:
    module = SCRIPTS / "forecast.js"
    code = f"""
    import {{ forecast }} from {json.dumps(module.as_uri())};
    const diffs = [undefined, undefined, .1, .15, .3, .1, .4];
    const rule = {{ threshold: .2, warmup: 2, most: -1, total: -1 }};
    const of = (change) => [...forecast(diffs, new Set([2, 3, 5]), {{ ...rule, ...change }})];
    const changes = [{{}}, {{ threshold: .12 }}, {{ most: 1 }}, {{ total: 1 }}, {{ threshold: 9 }}];
    console.log(JSON.stringify(changes.map(of)));
    """
    run = subprocess.run(["node", "--input-type=module", "-e", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == [[2, 3, 5], [2, 5], [2, 4], [2], [2, 3, 4, 5, 6]]
