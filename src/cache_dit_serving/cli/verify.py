"""`cache-dit-serving verify`: a gate that fails where a speed's outputs are too far from those without a cache."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cache_dit_serving.cli.command_line import CommandLine
from cache_dit_serving.cli.drawing import Interruption, Progress, count, fields_of
from cache_dit_serving.cli.generate import settings_of
from cache_dit_serving.cli.generate_flags import add_model_flags
from cache_dit_serving.cli.written_files import check_writable, write_file
from cache_dit_serving.config.settings import EMBEDDED_MODEL, Settings
from cache_dit_serving.errors import ConfigError, LoadError, ServingError
from cache_dit_serving.supervisor import fail

if TYPE_CHECKING:
    from cache_dit_serving.measure.gate.verdict import Verdict
    from cache_dit_serving.measure.search.points import Case

DESCRIPTION = """\
Hold the speeds of a configuration to their floors, in this process. Each prompt and seed is drawn without a cache and
at each speed; a floor is the likeness that nine in ten of a speed's outputs must reach.

  examples:
    cache-dit-serving verify                                             the embedded model, on its own prompts
    cache-dit-serving verify my-flux.yaml --prompts prompts.txt --floor ssim=.95 --floor fast:ssim=.9
    cache-dit-serving verify flux --prompts prompts.txt --seeds 1 --speeds balanced,fast --floor flip=.05 \\
        --field width=768 --field height=768 --json verify.json --junit verify.xml
    cache-dit-serving verify models.yaml --model kontext --prompts prompts.txt   one of several models

Without --floor, a speed is held to `speeds.floors` of the configuration, or else to its measured figures there.

Exit status: 0 if all speeds hold; 1 if one misses a floor, reuses no step or cannot be drawn; 2 for a mistake or a
model that fails, with nothing judged; 130 after Ctrl-C.
"""
USUAL_PROMPTS = 12
"""Prompts, each with all seeds, if neither a file of them nor a number of outputs is given."""


def main(arguments: Sequence[str]) -> int:
    """Draw, judge and print the verdict. Return the exit status."""
    parsed = parser().parse_args(arguments)
    stop = Interruption("nothing is judged")
    try:
        _take_configuration(parsed)
        for file in (parsed.json, parsed.junit):
            check_writable(file)
        with stop:
            verdict = _verdict(parsed, settings_of(parsed), stop)
        return _told(parsed, verdict) if verdict is not None else 128 + signal.SIGINT
    except (ConfigError, LoadError) as error:
        fail(str(error))
    except ServingError as error:
        fail(f"nothing is judged: {error}")
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGINT)  # the interpreter cannot shut down while a thread still loads weights


def cases_of_flags(parsed: argparse.Namespace, settings: Settings) -> tuple[list[Case], str]:
    """Return the prompts and seeds to draw, and the origin of the prompts in words.

    Raises:
        ConfigError: the file of prompts cannot be used.
    """
    from cache_dit_serving.measure.search.points import cases_of
    from cache_dit_serving.measure.search.prompt_lists import usual_prompts

    prompts, origin = usual_prompts(parsed.prompts, embedded=settings.model.path == EMBEDDED_MODEL)
    if parsed.prompts is None and parsed.outputs is None:
        prompts = prompts[:USUAL_PROMPTS]
    return cases_of(prompts, range(parsed.seeds), parsed.outputs or len(prompts) * parsed.seeds), origin


def _take_configuration(parsed: argparse.Namespace) -> None:
    if parsed.configuration is not None:
        if parsed.config is not None:
            raise ConfigError(f"--config: the configuration is named already, {parsed.configuration}; leave one out")
        parsed.config = parsed.configuration


def _verdict(parsed: argparse.Namespace, settings: Settings, stop: Callable[[], bool]) -> Verdict | None:
    """Return the verdict; None if the user has interrupted, which is told.

    Raises:
        ConfigError: a flag is invalid, or does not fit the model.
        LoadError: the model cannot be loaded.
        ServingError: the model failed.
    """
    from cache_dit_serving.measure.gate.gate import Gate, Stopped
    from cache_dit_serving.measure.gate.wanted import check_names, wanted
    from cache_dit_serving.measure.search.drawer import Interrupted
    from cache_dit_serving.measure.search.in_process import InProcess

    check_names(parsed.floor, parsed.speeds, settings.speeds)
    fields = fields_of(parsed.field)
    cases, prompts_are = cases_of_flags(parsed, settings)
    logging.getLogger("cache_dit_serving").setLevel(logging.WARNING)
    progress, drawer = Progress(), None
    try:
        drawer = InProcess.load(settings, fields, stop, progress)
        asked = wanted(parsed.floor, parsed.speeds, settings.speeds, drawer.subject, usual_request=not fields)
        gate = Gate(drawer, cases, asked, prompts_are=prompts_are, interrupted=stop, say=progress)
        return gate.run()
    except (Interrupted, Stopped) as reached:
        progress.clear()
        print(f"stopped after {str(reached) or 'no output'}; nothing is judged", file=sys.stderr, flush=True)
        return None
    finally:
        progress.clear()
        if drawer is not None:
            drawer.close()


def _told(parsed: argparse.Namespace, verdict: Verdict) -> int:
    from cache_dit_serving.measure.gate.report import as_markdown, sentences
    from cache_dit_serving.measure.gate.written import as_json, as_junit

    print(as_markdown(verdict))
    print("\n".join(sentences(verdict)))
    write_file(parsed.json, as_json(verdict))
    write_file(parsed.junit, as_junit(verdict))
    return 0 if verdict.holds else 1


def parser() -> CommandLine:
    parser = CommandLine("cache-dit-serving verify", "[CONFIG] [--prompts FILE] [--floor ...] [flags]", DESCRIPTION)
    parser.add_argument(
        "configuration",
        nargs="?",
        metavar="CONFIG",
        help="configuration: a name that `cache-dit-serving models` lists, or a YAML file (default: embedded)",
    )
    gate = parser.add_argument_group("gate")
    gate.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompts, one a line (default: the embedded model's own, or varied ones)",
    )
    gate.add_argument(
        "--floor",
        action="append",
        default=[],
        metavar="[SPEED:]MEASURE=VALUE",
        help="floor of every speed, or of one in place of that: flip, ssim, psnr_db ... of the worst decile; steps: "
        "that of an uncached run with a share of the steps",
    )
    gate.add_argument("--seeds", type=count, default=2, metavar="N", help="seeds of each prompt: 0, 1 ... (default: 2)")
    gate.add_argument(
        "--outputs",
        type=count,
        metavar="N",
        help="outputs of each speed at most: every prompt once before one has a second seed (default: all of a file, "
        f"else every seed of {USUAL_PROMPTS} prompts)",
    )
    gate.add_argument(
        "--speeds",
        type=lambda text: [name.strip() for name in text.split(",")],
        metavar="NAME,NAME",
        help="speeds to verify (default: all that the configuration offers)",
    )
    gate.add_argument("--field", action="append", default=[], metavar="NAME=VALUE", help="field of every request")
    gate.add_argument("--json", type=Path, metavar="FILE", help="verdict with every output's figures, as JSON")
    gate.add_argument("--junit", type=Path, metavar="FILE", help="verdict as JUnit XML, a case for each speed")
    add_model_flags(parser)
    return parser
