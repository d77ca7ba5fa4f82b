"""Command line of `cache-dit-serving bench`, and the plan that it describes."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cache_dit_serving.cli.command_line import CommandLine
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.findings import cut
from cache_dit_serving.measure.load.arrival import Bounds, Closed, Load, Open
from cache_dit_serving.measure.load.bench import Plan
from cache_dit_serving.measure.load.client import checked_url
from cache_dit_serving.measure.load.doors import DOORS, door_of
from cache_dit_serving.measure.load.source import Entry, Source, mix_of_values, read_mix, read_prompts

DEFAULT_URL = "http://127.0.0.1:3000"
KEY_VARIABLE = "CACHE_DIT_SERVING_API_KEY"
"""Environment variable of the API key. A flag shows in the list of processes."""
MOST_POINTS, MOST_USERS, MOST_RATE = 32, 1024, 1000.0
DESCRIPTION = """\
Measure a running server under load: throughput, latency with confidence intervals, its stages, errors, reused steps.

  closed loop   --concurrency N: N users, each of whom waits for an answer before the next request
  open loop     --rate R: R requests per second at random times (Poisson), whether or not earlier ones are answered;
                latency counts from the time at which a request was due

  examples:
    cache-dit-serving bench                                            # 1 user, the server of `make serve`
    cache-dit-serving bench --concurrency 1,2,4,8 --html load.html     # latency over load, as a page with plots
    cache-dit-serving bench --rate 0.5,1,2 --duration 120 --requests 500 -o before.json
    cache-dit-serving bench --speed lossless,balanced --size 512x512,1024x1024 --steps 28
    cache-dit-serving bench http://localhost:8000 --door openai --model flux
    cache-dit-serving bench --model kontext                            # one of several models of a server
    cache-dit-serving bench --compare before.json after.json           # which differences are real
  A mix (--mix FILE) is YAML:
    mix:
      - {name: draft, weight: 3, body: {num_inference_steps: 8, speed: fast}}
      - {name: final, weight: 1, body: {num_inference_steps: 28, speed: lossless}}
"""


def parser() -> CommandLine:
    """Return the parser of the command."""
    line = CommandLine("cache-dit-serving bench", "[URL] [flags]", DESCRIPTION)
    line.add_argument("url", nargs="?", metavar="URL", help=f"the server; left out: {DEFAULT_URL}")
    load = line.add_argument_group("load")
    load.add_argument("--concurrency", metavar="N,N", help="users, a point for each number (default 1)")
    load.add_argument("--rate", metavar="R,R", help="requests per second, a point for each")
    load.add_argument("--requests", type=_whole(1, 1_000_000), default=100, help="requests of a point at most (100)")
    load.add_argument("--duration", type=_positive, default=60.0, help="seconds of a point at most (60)")
    load.add_argument("--warm-up", type=_whole(0, 1000), default=2, help="requests before, which count nowhere (2)")
    load.add_argument("--max-in-flight", type=_whole(1, 4096), default=64, help="requests on their way at most (64)")
    load.add_argument("--timeout", type=_positive, default=600.0, help="seconds until a request is given up (600)")
    sent = line.add_argument_group("requests")
    sent.add_argument("--door", choices=DOORS, default="generate", help=f"route: {', '.join(DOORS)} (default generate)")
    sent.add_argument("--prompts", type=Path, metavar="FILE", help="prompts, one a line; left out: 200 of ours")
    sent.add_argument("--size", metavar="WxH,WxH", help="sizes, in pixels")
    sent.add_argument("--steps", metavar="N,N", help="num_inference_steps")
    sent.add_argument("--speed", metavar="NAME,NAME", help="speeds, such as lossless,balanced")
    sent.add_argument("--field", action="append", default=[], metavar="NAME=JSON", help="another field of each request")
    sent.add_argument("--mix", type=Path, metavar="FILE", help="request bodies with weights, as YAML")
    sent.add_argument(
        "--seed", default="0", help="seed of the first request, of the mix and of the arrivals, or `none`"
    )
    sent.add_argument("--model", metavar="NAME", help="model of each request, where the server has several")
    sent.add_argument("--accept", default="image/png", help="media type of the door `file` (image/png)")
    server = line.add_argument_group("server")
    server.add_argument("--api-key", metavar="KEY", help=f"API key; better in {KEY_VARIABLE}, which no list shows")
    server.add_argument("--yes-remote", action="store_true", help="put load on another machine")
    results = line.add_argument_group("results")
    results.add_argument("-o", "--output", type=Path, metavar="FILE", help="results as JSON, each request among them")
    results.add_argument("--markdown", type=Path, metavar="FILE", help="the report; left out: on standard output")
    results.add_argument("--html", type=Path, metavar="FILE", help="the report with plots, one file")
    results.add_argument("--csv", type=Path, metavar="FILE", help="figures as CSV, a row for each load")
    results.add_argument("--note", help="remark for the results, such as the GPU")
    results.add_argument("--quiet", action="store_true", help="no progress")
    results.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="compare two results; no load")
    return line


def plan_of(parsed: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Plan:
    """Return the plan that the flags describe.

    Raises:
        ConfigError: a flag's value is invalid, or contradicts another.
    """
    url = checked_url(parsed.url or DEFAULT_URL, remote=parsed.yes_remote)
    if parsed.model and parsed.door == "old":
        raise ConfigError("--model: cache_dit.serve has one model; leave it out with --door old")
    seed = None if parsed.seed == "none" else _seed(parsed.seed)
    source = Source(read_prompts(parsed.prompts), mix := _mix(parsed), seed)
    door = door_of(parsed.door, accept=parsed.accept, model=parsed.model)
    for entry in mix:
        door.check(source.request(0, 0)[1] | entry.body)
    shown = {name: value for name, value in vars(parsed).items() if name not in _UNSHOWN and value not in (None, [])}
    return Plan(
        url=url,
        door=door,
        source=source,
        loads=_loads(parsed),
        model=parsed.model,
        bounds=Bounds(parsed.requests, parsed.duration, parsed.max_in_flight),
        warm_up=parsed.warm_up,
        timeout_s=parsed.timeout,
        key=parsed.api_key or environ.get(KEY_VARIABLE) or None,
        seed=seed or 0,
        settings={name: str(value) if isinstance(value, Path) else value for name, value in shown.items()},
    )


_UNSHOWN = ("url", "api_key", "output", "markdown", "html", "csv", "quiet", "compare", "yes_remote")
"""Flags that change no figure, and the key."""


def _loads(parsed: argparse.Namespace) -> list[Load]:
    if parsed.rate is not None and parsed.concurrency is not None:
        raise ConfigError("--rate: excludes --concurrency; a load is open or closed")
    loads: list[Load]
    if parsed.rate is not None:
        loads = [Open(rate) for rate in _listed("--rate", parsed.rate, _rate)]
    else:
        loads = [Closed(users) for users in _listed("--concurrency", parsed.concurrency or "1", _whole(1, MOST_USERS))]
    if len(loads) > MOST_POINTS or len(set(loads)) < len(loads):
        raise ConfigError(
            f"{'--concurrency' if parsed.rate is None else '--rate'}: takes up to {MOST_POINTS} loads, each once"
        )
    return loads


def _mix(parsed: argparse.Namespace) -> list[Entry]:
    values: dict[str, list[Any]] = {}
    for flag, field, one in (
        ("size", "size", _size),
        ("steps", "num_inference_steps", _whole(1, 100_000)),
        ("speed", "speed", _name),
    ):
        if (given := getattr(parsed, flag)) is not None:
            values[field] = _listed(f"--{flag}", given, one)
    for given in parsed.field:
        name, equals, text = given.partition("=")
        if not equals or not re.fullmatch(r"\w+", name):
            raise ConfigError("--field: takes NAME=JSON, such as guidance_scale=3.5")
        try:
            values[name] = [json.loads(text)]
        except (ValueError, RecursionError):
            values[name] = [text]  # a text needs no quotes
    if parsed.mix is None:
        return mix_of_values(values)
    if values:
        raise ConfigError("--mix: excludes --size, --steps, --speed and --field; write them into its bodies")
    return read_mix(parsed.mix)


def _listed(flag: str, text: str, one: Callable[[str], Any]) -> list[Any]:
    try:
        return [one(each.strip()) for each in text.split(",")]
    except (argparse.ArgumentTypeError, ValueError) as error:
        reason = str(error) if isinstance(error, argparse.ArgumentTypeError) else "has no value of this kind"
        raise ConfigError(f"{flag}: {cut(text)}: {reason}") from error


def _whole(least: int, most: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"is no whole number from {least} to {most:,}")
        return int(text)

    return whole


def _positive(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError("is no number of seconds, above 0 and at most 86,400")
    return value


def _rate(text: str) -> float:
    value = _number(text)
    if not 0 < value <= MOST_RATE:
        raise argparse.ArgumentTypeError(f"is no rate, above 0 and at most {MOST_RATE:g} requests/s")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _size(text: str) -> tuple[int, int]:
    if not (found := re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)):
        raise argparse.ArgumentTypeError("is no size, such as 1024x1024")
    return int(found[1]), int(found[2])


def _name(text: str) -> str:
    if not re.fullmatch(r"[\w.-]{1,40}", text):
        raise argparse.ArgumentTypeError("is no name, such as balanced")
    return text


def _seed(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise ConfigError("--seed: is a whole number from 0, or `none`")
    return int(text)
