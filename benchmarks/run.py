"""What serving adds, and what the cache brings: `python -m benchmarks.run`, fifteen minutes to forty.

`make bench` runs it, and the benchmarks of answers, of files and of a start.
Writes docs/benchmarks/README.md, each section as soon as it is measured, and the speeds' figures in
configs/embedded.yaml. With names of sections it measures these alone, and leaves the others as they are.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.progress import say
from benchmarks.sections import SECTIONS, Bench
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.pipeline.environment import quiet_libraries

PAGE = BUNDLE_ROOT / "docs" / "benchmarks" / "README.md"
CONFIG = BUNDLE_ROOT / "configs" / "embedded.yaml"

OPENING = """\
# Benchmarks

Written by `python -m benchmarks.run` ({date}), a part of `make bench`. Each section has its own date and machine. Every
ratio is of measurements taken side by side in one run.
"""

OTHER_PAGES = """\
## Other pages

| page | measured |
|---|---|
| [GPU](../gpu.md) | FLUX.1-dev and Qwen-Image at full size on an H200 |
| [torch.compile](compile.md) | speed-up and start time of `compile` |
| [Quantisation](quantization.md) | size, quality and seconds of each weight type |
| [LoRAs](loras.md) | switching and drawing with LoRAs |
| [Prompt cache](prompt-cache.md) | seconds saved by kept prompt embeddings |
| [Answers](answers.md) | CPU and wall time that serving adds to a picture |
| [Writing files](files.md) | time, size and likeness of each image format, encoder and x264 preset |
| [Ranks](ranks.md) | one forward pass on several processes |
| [Followers](job-events.md) | event streams of a job |
| [Previews](previews.md) | previews of a job |
| [Queue order](queue-order.md) | waits under `server.queue_order` |
| [Switches between models](switching.md) | waits and switches under `server.switch_after_s` |
| [Watched floors](floors.md) | false alarms, and outputs until a missed floor is found and a repaired one comes back |
| [Live quality](live-quality.md) | a floor that trips on a live server and holds again: shadow runs, and the theory |
| [Response times](responsive.md) | answers of other routes during a generation |
| [cache_dit.serve](vs-cache-dit-serve.md) | the old server beside this one: times, CPU, memory, clients that leave |
| [Soak](soak.md) | ten minutes of four times the traffic that fits: what grows, what is lost |
| [Start](start.md) | seconds and CPU of each part of a start, and of each library's import |
| [Test times](test-times.md) | duration of `make test` by module |
"""


def main() -> None:
    """Measure the sections, and write each into the page."""
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"sections to measure, all by default: {', '.join(SECTIONS)}"
    )
    arguments.add_argument(
        "--page", type=Path, default=PAGE, help="file to write instead, configs/ left alone (default: %(default)s)"
    )
    chosen = arguments.parse_args()
    if unknown := set(chosen.sections) - set(SECTIONS):
        arguments.error(f"there is no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    logging.getLogger("cache_dit_serving").setLevel(logging.WARNING)
    quiet_libraries()
    page: Path = chosen.page
    bench = Bench(figures=CONFIG if page == PAGE else None)
    for name, section in SECTIONS.items():
        if chosen.sections and name not in chosen.sections:
            continue
        say(section.title)
        date = datetime.now(UTC).date().isoformat()
        text = f"## {section.title}\n\n{date}. {machine()}\n\n{section.measure(bench).strip()}\n"
        page.write_text(with_sections(page, {section.title: text}, date), encoding="utf-8")
        print(text, flush=True)


def with_sections(page: Path, measured: Mapping[str, str], date: str) -> str:
    """Return the page with these sections in the place of those of the same titles, and its opening with the date.

    Args:
        measured: text of each section, by its title.
    """
    _, *parts = page.read_text(encoding="utf-8").split("\n## ") if page.exists() else [""]
    there = {part.splitlines()[0]: f"## {part.rstrip()}\n" for part in parts}
    there.update(measured)
    texts = [there[section.title] for section in SECTIONS.values() if section.title in there]
    return "\n".join([OPENING.format(date=date), *texts, OTHER_PAGES])


if __name__ == "__main__":
    main()
