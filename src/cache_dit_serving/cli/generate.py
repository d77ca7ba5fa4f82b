"""`cache-dit-serving generate`: draws into files without a server, with the same settings, fields and checks."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import signal
import sys
import typing
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cache_dit_serving.cli.generate_flags import (
    FORMATS,
    check_beforehand,
    check_format,
    parser,
    request_of,
    suffix_of,
)
from cache_dit_serving.cli.serve import environment_of, or_embedded
from cache_dit_serving.config.reading import Resolved, load_settings, resolve
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.config.variables import OVERRIDE_PREFIX
from cache_dit_serving.errors import ConfigError, InvalidRequest, NotReady, ServingError
from cache_dit_serving.findings import cut
from cache_dit_serving.media.kinds import FORMATS_OF_FIELD
from cache_dit_serving.schemas.request import GenerateRequest
from cache_dit_serving.supervisor import fail, safety_or_exit

if typing.TYPE_CHECKING:
    from cache_dit_serving.jobs.generation import Generation, OutputFile
    from cache_dit_serving.jobs.safety import Safety
    from cache_dit_serving.jobs.worker import PipelineWorker
    from cache_dit_serving.planning.model import PlannedModel
    from cache_dit_serving.schemas.answers import GenerateResponse

ENDING_S = 60
"""Maximum wait for the worker to end, seconds."""


def main(arguments: Sequence[str]) -> int:
    """Draw and write the files.

    Returns:
        Exit status: 0 once the files are written, 1 for a failure. An error of the user ends the process with 2, an
        interruption with 130.
    """
    parsed = parser().parse_args(arguments)
    try:
        settings = settings_of(parsed)
        request, uploads = request_of(parsed)
    except ConfigError as error:
        fail(str(error))
    safety = safety_or_exit(settings.safety)
    try:
        check_beforehand(request, settings, suffix_of(parsed.output))
        answer, images = asyncio.run(_drawn(settings, safety, request, uploads, suffix_of(parsed.output)))
    except ConfigError as error:
        fail(str(error))
    except InvalidRequest as error:
        fail(error.message)
    except NotReady:
        return 1  # the reason is in the log
    except ServingError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        _clear_line()
        print("stopped", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGINT)  # the interpreter cannot shut down while a thread still loads weights
    for warning in answer.warnings:
        print(f"warning: {warning.param}: {warning.message}", file=sys.stderr)
    files = _written(images, parsed)
    if parsed.json:
        summary = answer.model_dump(mode="json", exclude_none=True, exclude={"images", "video", "audio"})
        print(json.dumps(summary | {"files": [str(file) for file in files]}, indent=2))
    else:
        print("\n".join(map(str, files)))
    return 0


def settings_of(parsed: argparse.Namespace) -> Settings:
    """Return the settings that the flags of a command without a server describe.

    Of a list of models they are those of the one that `--model` names, or else of the default one. Standard error
    names it.

    Raises:
        ConfigError: as :func:`environment_of`; there is no model of the name, or there is no list.
    """
    environ = environment_of(parsed, or_embedded(parsed, os.environ))
    if (resolved := resolve(environ)).settings.models:
        return _of_list(resolved, parsed.model)
    if parsed.model is not None:
        raise ConfigError(
            f"--model {parsed.model}: the configuration has one model and no list; leave it out "
            "(--model-path and --config say what to load)"
        )
    for key in ("SPEEDS__WARM_UP", "SERVER__WARM_UP"):  # useful only for many requests
        environ.setdefault(f"{OVERRIDE_PREFIX}{key}", "false")
    return load_settings(environ)


def _of_list(resolved: Resolved, name: str | None) -> Settings:
    """Return the settings of a model of the list; None: of the default one.

    Raises:
        ConfigError: there is no model of this name.
    """
    entries = resolved.settings.models
    if name is None:
        model = resolved.models[0]
    else:
        found = [each for each in resolved.models if name in (each.name, *each.aliases)]
        if not found:
            there = ", ".join(known for entry in entries for known in (entry.name, *entry.aliases))
            raise ConfigError(f"--model {cut(name)}: the configuration lists no such model; there is {there}")
        [model] = found
    by = "the default of the list" if name is None else "of the list"
    print(f"model {model.name}, {by}: {', '.join(entry.name for entry in entries)}", file=sys.stderr)
    settings = model.settings
    # No variable can set a section of a model beside the list.
    unwarmed = {name: getattr(settings, name).model_copy(update={"warm_up": False}) for name in ("speeds", "server")}
    return settings.model_copy(update=unwarmed)


async def _drawn(
    settings: Settings, safety: Safety, request: GenerateRequest, uploads: list[str | bytes], suffix: str
) -> tuple[GenerateResponse, list[OutputFile]]:
    """Load the model, and draw.

    Raises:
        ServingError: NotReady if the model cannot be loaded, else as /generate.
    """
    from cache_dit_serving.engine.caller import SCOPES, Caller
    from cache_dit_serving.engine.engine import Engine
    from cache_dit_serving.engine.intake import Intake
    from cache_dit_serving.jobs.worker import PipelineWorker
    from cache_dit_serving.pipeline.assemble import assemble
    from cache_dit_serving.ranks.ranked import RankedRunner

    logging.getLogger("cache_dit_serving").setLevel(logging.WARNING)
    worker = PipelineWorker.alone(
        partial(RankedRunner.start if settings.parallelism else assemble, settings),
        max_queue=1,
        order=settings.server.queue_order,
        safety=safety,
        on_ready=lambda loaded: None,
    )
    engine = Engine(settings, worker)
    worker.start()
    try:
        await _ready(worker)
        if suffix:
            request = _as_file(request, suffix, worker.loaded().model)
        intake = Intake(request, "generate", False, (), tuple(uploads), "", Caller("", SCOPES))
        prepared = await engine.prepare(intake)
        prepared.generation.listen(partial(_show, prepared.generation))
        await engine.submit(prepared)
        images = await engine.wait(prepared, intake.left())
        _clear_line()
        answer, _ = await engine.deliver(prepared, images)
    finally:
        engine.decoding.close()
        if worker.state == "ready":
            worker.drain()
            await asyncio.to_thread(worker.join, ENDING_S)
    return answer, images


def _as_file(request: GenerateRequest, suffix: str, model: PlannedModel) -> GenerateRequest:
    """Return the request with the format of the file to write, unless it names a format itself.

    Raises:
        InvalidRequest: the model does not make files of this suffix.
    """
    from cache_dit_serving.planning.fields import offered_fields

    fields = [field.name for field, _ in offered_fields(model) if field.name in FORMATS_OF_FIELD]
    check_format(suffix, fields)
    given = {name: FORMATS[suffix] for name in fields}
    return request.model_copy(update={name: value for name, value in given.items() if getattr(request, name) is None})


async def _ready(worker: PipelineWorker) -> None:
    """Wait until the model is loaded, and show the current stage.

    Raises:
        NotReady: the model cannot be loaded.
    """
    shown = None
    while worker.state == "loading":
        if worker.reason != shown and sys.stderr.isatty():
            shown = worker.reason
            _clear_line()
            print(shown, end="", file=sys.stderr, flush=True)
        await asyncio.sleep(0.05)
    _clear_line()
    worker.loaded()


def _show(generation: Generation) -> None:
    """Show the progress on a terminal. Called on the pipeline's thread after each step."""
    if sys.stderr.isatty():
        cached = f", {generation.cached_steps} cached" if generation.cached_steps else ""
        print(f"\r\033[Kstep {generation.step} of {generation.steps}{cached}", end="", file=sys.stderr, flush=True)


def _clear_line() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _written(images: Sequence[OutputFile], parsed: argparse.Namespace) -> list[Path]:
    """Write the files and return their paths."""
    to: Path = parsed.output
    files = []
    for image in images:
        if not suffix_of(to):
            what = re.sub(r"[^a-z0-9]+", "-", (parsed.prompt or "output").lower()).strip("-")
            file = to / f"{what[:40]}-{image.record.seed}.{image.extension}"
        else:
            file = to if len(images) == 1 else to.with_stem(f"{to.stem}-{image.record.seed}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image.content)
        except OSError as error:
            fail(f"{file} cannot be written: {error.strerror}")
        files.append(file)
    return files
