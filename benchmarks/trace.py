"""The picture of a trace in the documentation: `python -m benchmarks.trace` draws it from a new one.

Writes docs/images/trace.png.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from cache_dit_serving.config.acceleration import ProfilingSettings
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.pipeline.environment import quiet_libraries
from cache_dit_serving.pipeline.protocol import Unwatched
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest

IMAGE = BUNDLE_ROOT / "docs" / "images" / "trace.png"
WIDTH, ROW, MARGIN = 1200, 26, 20
COLOURS = {"computed": "#3b6ea8", "cached": "#e08a3c"}
OTHER = "#8a8a8a"


def traced() -> list[dict[str, Any]]:
    """The ranges of a new trace."""
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings({"CACHE_DIT_SERVING__SPEEDS__WARM_UP": "false"})
        profiling = ProfilingSettings(requests="asked", folder=Path(folder))
        loaded = assemble(settings.model_copy(update={"profiling": profiling}), lambda stage: None)
        request = GenerateRequest(prompt="a robot on a yellow background", seed=1, profile=True)
        loaded.runner.sample(plan(resolve(request, loaded.model)).call, Unwatched())
        (file,) = Path(folder).iterdir()
        events = json.loads(file.read_text())["traceEvents"]
    names = ("step ", "encode prompt", "decode")
    return [each for each in events if each.get("cat") == "user_annotation" and each["name"].startswith(names)]


def main() -> None:
    """Draw it."""
    quiet_libraries()
    events = traced()
    begin = min(event["ts"] for event in events)
    end = max(event["ts"] + event["dur"] for event in events)
    picture = Image.new("RGB", (WIDTH, len(events) * ROW + 2 * MARGIN), "white")
    drawing, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    scale = (WIDTH - 2 * MARGIN - 220) / (end - begin)
    for row, event in enumerate(events):
        top, left = MARGIN + row * ROW, MARGIN + 220 + (event["ts"] - begin) * scale
        colour = COLOURS.get(event["name"].rpartition(" ")[2], OTHER)
        drawing.text((MARGIN, top + 3), event["name"], "black", font=font)
        drawing.text((MARGIN + 130, top + 3), f"{event['dur'] / 1000:.1f} ms", "#555555", font=font)
        drawing.rectangle((left, top + 3, left + max(2, event["dur"] * scale), top + ROW - 4), fill=colour)
    picture.save(IMAGE, optimize=True)


if __name__ == "__main__":
    main()
