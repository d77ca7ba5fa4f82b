"""PSNR and SSIM by scikit-image, for `tests/measure/reference.json`.

scikit-image brings scipy, beside which diffusers offers other schedulers, so it stays out of the environment:

    pip install --target build/skimage scikit-image==0.26.0
    PYTHONPATH=src:.:build/skimage python -m tools.reference_distances
"""

from __future__ import annotations

import importlib
import json
from typing import Any

from tests.support.reference_pictures import PAIRS
from tests.support.server import ROOT

FILE = ROOT / "tests" / "measure" / "reference.json"


def main() -> None:
    """Write the figures of each pair of pictures, and the version that made them."""
    skimage: Any = importlib.import_module("skimage")
    metrics: Any = importlib.import_module("skimage.metrics")
    figures = {
        name: {
            "psnr_db": float(metrics.peak_signal_noise_ratio(reference, ours, data_range=1.0)),
            "ssim": float(
                metrics.structural_similarity(
                    reference,
                    ours,
                    data_range=1.0,
                    channel_axis=-1,
                    gaussian_weights=True,
                    sigma=1.5,
                    use_sample_covariance=False,
                )
            ),
        }
        for name, (ours, reference) in PAIRS.items()
    }
    FILE.write_text(json.dumps({"scikit-image": skimage.__version__, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
