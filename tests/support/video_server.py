"""A server of a tiny Wan with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.families import save_family
from tests.support.server import Server, options, ready, serving


@contextmanager
def serving_wan(folder: Path, **settings: Any) -> Iterator[Server]:
    """
    Args:
        settings: further ones, named SECTION__KEY.
    """
    environ = options(
        MODEL__PATH=str(save_family("Wan", folder / "model")),
        MODEL__DTYPE="float32",
        CACHE={"Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 0.9},
        DEFAULTS={"width": 32, "height": 32, "num_frames": 17, "num_inference_steps": 6},
        LIMITS={"min_side": 32, "max_num_frames": 81},
        **settings,
    )
    with serving(folder, environ=environ) as running:
        running.wait_for(ready)
        yield running
