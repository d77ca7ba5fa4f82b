"""`cache-dit-serving tune`: searches the cache settings of a model, and says if fewer steps do the same."""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_dit_serving.cli.command_line import CommandLine
from cache_dit_serving.cli.drawing import Interruption, Progress, count, fields_of
from cache_dit_serving.cli.generate import settings_of
from cache_dit_serving.cli.generate_flags import add_model_flags
from cache_dit_serving.config.settings import EMBEDDED_MODEL, Settings
from cache_dit_serving.errors import ConfigError, LoadError, ServingError
from cache_dit_serving.supervisor import fail

if TYPE_CHECKING:
    from cache_dit_serving.measure.search.drawer import Drawer

DESCRIPTION = """\
Search the cache settings of a model, together with the number of steps. Each point is measured in time and in distance
to the uncached output of the same prompt and seed, several outputs a point. Uncached runs of fewer steps are measured
beside them: a cache is worth its place only where it beats them, and the report's first line says if it does.

The points chosen for `high`, `balanced` and `fast` are the fastest that hold their floors. They are drawn again on
prompts that the search has never used. The folder then has:

  report.html, report.md   what was found, pictures side by side, the settings as a command
  tuned.yaml               the configuration with these speeds: cache-dit-serving serve --config tuned/tuned.yaml
  cache-dit-SPEED.yaml     the same settings for cache_dit.load_configs
  front.json               every point with its intervals, for programs

Ctrl-C ends the search and writes the report of what there is. The same command goes on with the same folder.

  examples:
    cache-dit-serving tune --budget 20m                                  the embedded model, on its own prompts
    cache-dit-serving tune --config flux --prompts prompts.txt           a model of yours, one prompt a line
    cache-dit-serving tune --config qwen-image --prompts prompts.txt --trials 100 \\
        --floor ssim=.9 --floor high:flip=.03 --field width=768 --field height=768 -o qwen-768
    cache-dit-serving tune --url http://gpu-1:3000 --prompts prompts.txt a server that runs, by its public API
    cache-dit-serving tune --config models.yaml --model kontext          one of several models; with --url too

Exit status: 0 if all three speeds hold on unseen prompts, 1 if not, 2 for a mistake, 130 after Ctrl-C.
"""
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
KEY_VARIABLE = "CACHE_DIT_SERVING_API_KEY"


def main(arguments: Sequence[str]) -> int:
    """Search, verify, and write the report into the folder. Return the exit status."""
    parsed = parser().parse_args(arguments)
    stop = Interruption("the report follows")
    drawer: Drawer | None = None
    from cache_dit_serving.measure.search.drawer import Interrupted

    try:
        settings = None if parsed.url else settings_of(parsed)
        options = options_of(parsed, settings)
        from cache_dit_serving.measure.search.session import Session

        with stop:
            progress = Progress()
            drawer = _drawer(parsed, settings, stop, progress)
            outcome = Session(drawer, options, settings, interrupted=stop, say=progress).run()
            progress.clear()
    except ConfigError as error:
        fail(str(error))
    except (LoadError, ServingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted:
        print("stopped before anything was measured", file=sys.stderr, flush=True)
        return 128 + signal.SIGINT
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGINT)  # the interpreter cannot shut down while a thread still loads weights
    finally:
        if drawer is not None:
            drawer.close()
    print(re.sub(r"[*`]", "", outcome.headline()))
    print(options.folder / "report.html")
    if outcome.interrupted:
        return 128 + signal.SIGINT
    return 0 if outcome.checked and all(each.holds for each in outcome.checked) else 1


def options_of(parsed: argparse.Namespace, settings: Settings | None) -> Any:
    """Return the options that the flags describe.

    Raises:
        ConfigError: a value is invalid, no prompts are given, or there is nothing to go on with.
    """
    from cache_dit_serving.measure.search.prompt_lists import usual_prompts
    from cache_dit_serving.measure.search.session import CONDITIONS, Options

    embedded = settings is not None and settings.model.path == EMBEDDED_MODEL
    prompts, origin = usual_prompts(parsed.prompts, embedded=embedded)
    if parsed.resume and not (parsed.output / CONDITIONS).exists():
        raise ConfigError(f"--resume: {parsed.output} holds no search; leave --resume out to begin one")
    return Options(
        folder=parsed.output,
        prompts=prompts,
        prompts_are=origin,
        seeds=tuple(dict.fromkeys(parsed.seeds)),
        outputs=parsed.outputs,
        unseen=parsed.unseen,
        trials=parsed.trials,
        budget_s=parsed.budget,
        floors=parsed.floor or (),
        measure=parsed.distance,
        seed=parsed.search_seed,
    )


def _drawer(
    parsed: argparse.Namespace, settings: Settings | None, stop: Callable[[], bool], progress: Callable[[str], None]
) -> Drawer:
    fields = fields_of(parsed.field or ())
    if settings is None:
        from cache_dit_serving.measure.search.by_http import ByHttp

        return ByHttp(parsed.url, fields, key=os.environ.get(KEY_VARIABLE), model=parsed.model)
    from cache_dit_serving.measure.search.in_process import InProcess

    logging.getLogger("cache_dit_serving").setLevel(logging.WARNING)
    return InProcess.load(settings, fields, stop, progress)


def seconds(text: str) -> float:
    """Return the seconds of a duration such as `90s`, `20m` or `1.5h`.

    Raises:
        argparse.ArgumentTypeError: the text is no such duration.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: write it as 90s, 20m or 1.5h")
    return float(match[1]) * UNITS[match[2]]


def parser() -> CommandLine:
    parser = CommandLine("cache-dit-serving tune", "[--prompts FILE] [-o FOLDER] [flags]", DESCRIPTION)
    search = parser.add_argument_group("search")
    search.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompts, one a line (default: 200 varied ones, or the embedded model's own)",
    )
    search.add_argument(
        *("-o", "--output"),
        type=Path,
        default=Path("tuned"),
        metavar="FOLDER",
        help="folder of the search and its report (default: tuned)",
    )
    search.add_argument("--trials", type=count, metavar="N", help="points to suggest (default: 60, or all of --budget)")
    search.add_argument("--budget", type=seconds, metavar="TIME", help="time for all, such as 90s, 20m or 1.5h")
    search.add_argument(
        "--floor",
        action="append",
        metavar="[SPEED:]MEASURE=VALUE",
        help="likeness that nine in ten outputs must reach, by a measure of the output's kind (flip, ssim, psnr_db "
        "...), or by steps: that of an uncached run with a share of the steps; without a speed it replaces the floor "
        "of fast and holds for all (default: high:steps=.75 balanced:steps=.5 fast:steps=.333)",
    )
    search.add_argument(
        "--distance", metavar="MEASURE", help="measure to search by (default: flip, of sounds spectral_db)"
    )
    search.add_argument("--outputs", type=count, default=8, metavar="N", help="outputs a point (default: 8)")
    search.add_argument(
        "--unseen", type=count, default=16, metavar="N", help="outputs a chosen point in the verification (default: 16)"
    )
    search.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1], metavar="SEED", help="seeds, taken in turn (default: 0 1)"
    )
    search.add_argument(
        "--field",
        action="append",
        metavar="NAME=VALUE",
        help="field of every request, such as width=512; num_inference_steps is that of the reference",
    )
    search.add_argument("--search-seed", type=int, default=0, metavar="N", help="seed of the sampler (default: 0)")
    search.add_argument("--resume", action="store_true", help="refuse to begin anew if the folder holds no search")
    search.add_argument(
        "--url",
        metavar="URL",
        help=f"a running server instead of a model here; its API key stands in {KEY_VARIABLE}",
    )
    add_model_flags(parser)
    return parser
