"""`cache-dit-serving generate`: draw without a server, by the same settings, fields and checks, into files."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import signal
import sys
import types
import typing
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from cache_dit_serving.api.inputs import upload_name
from cache_dit_serving.config.reading import CONFIG_VARIABLE, MODEL_PATH_VARIABLE, OVERRIDE_PREFIX, load_settings
from cache_dit_serving.config.settings import EMBEDDED_MODEL, Settings
from cache_dit_serving.errors import ConfigError, InvalidRequest, NotReady, ServingError
from cache_dit_serving.findings import findings_of
from cache_dit_serving.flags import FLAGS, Group, grouped
from cache_dit_serving.media.formats import AudioFormat, ImageFormat, VideoFormat
from cache_dit_serving.schemas.request import GenerateRequest
from cache_dit_serving.serve import environment_of
from cache_dit_serving.supervisor import fail

if typing.TYPE_CHECKING:
    from cache_dit_serving.jobs.generation import Encoded, Generation
    from cache_dit_serving.jobs.worker import PipelineWorker
    from cache_dit_serving.planning.model import PlannedModel
    from cache_dit_serving.schemas.answers import GenerateResponse

DESCRIPTION = """\
Draw into files, without a server. The settings are those of `cache-dit-serving serve`, the fields those of /generate.

  examples:
    cache-dit-serving generate "a red apple on a blue background" --seed 7
    cache-dit-serving generate "a red apple" -o apples.webp --num-images 4 --speed fast
    cache-dit-serving generate "a green apple" --image apple.png --strength 0.6
    cache-dit-serving generate "a robot" --config qwen-image --compile -o robot.png
"""
MODEL_GROUPS = (Group.MODEL, Group.CACHE, Group.PARALLELISM, Group.QUANTISATION, Group.LORA, Group.MEMORY)
"""Flags of `serve` that are about the model."""
FILES = {
    "image_urls": ("--image", "picture to edit or to begin from, several where the model takes them"),
    "mask_url": ("--mask", "mask of the picture: white is drawn anew"),
    "control_url": ("--control", "picture that guides what is drawn where"),
    "video_url": ("--video", "video to begin from, MP4 or WebM"),
    "last_image_url": ("--last-image", "picture that a video ends with"),
}
"""Fields that bring files: here by their names."""
OURS = {"prompt", "output_format", "output_dir", "profile", "cache", "priority"}
"""Fields without a flag of their own: flags of `serve` say the same, or it is about a queue of others."""
OF_FIELD = {"image_format": ImageFormat, "video_format": VideoFormat, "audio_format": AudioFormat}
FORMATS = {"jpg": "jpeg"} | {name: name for kind in OF_FIELD.values() for name in typing.get_args(kind)}
"""By a file's suffix."""
ASKED = "asked_"
"""Before the name of a field, where flags of `serve` have the same name."""
ENDING_S = 60
"""For what runs to end."""


def main(arguments: Sequence[str]) -> int:
    """Exit status 0 once the files lie there, 2 for what the caller can mend, 1 else, 130 where it was stopped."""
    parsed = _parser().parse_args(arguments)
    try:
        settings = _settings(parsed)
        request, uploads = _request(parsed)
    except ConfigError as error:
        fail(str(error))
    try:
        answer, images = asyncio.run(_drawn(settings, request, uploads, _suffix(parsed.output)))
    except InvalidRequest as error:
        fail(error.message)
    except NotReady:
        return 1  # the log has said why
    except ServingError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        _clear_line()
        print("stopped", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGINT)  # the interpreter cannot finish in order while a thread still loads weights
    for warning in answer.warnings:
        print(f"warning: {warning.param}: {warning.message}", file=sys.stderr)
    files = _written(images, parsed)
    if parsed.json:
        told = answer.model_dump(mode="json", exclude_none=True, exclude={"images", "video", "audio"})
        print(json.dumps(told | {"files": [str(file) for file in files]}, indent=2))
    else:
        print("\n".join(map(str, files)))
    return 0


def _settings(parsed: argparse.Namespace) -> Settings:
    environ = dict(os.environ)
    if not parsed.model_path and not environ.get(MODEL_PATH_VARIABLE):
        environ.setdefault(CONFIG_VARIABLE, EMBEDDED_MODEL)
    environ = environment_of(parsed, environ)
    for key in ("SPEEDS__WARM_UP", "SERVER__WARM_UP"):  # they are for many requests
        environ.setdefault(f"{OVERRIDE_PREFIX}{key}", "false")
    return load_settings(environ)


def _request(parsed: argparse.Namespace) -> tuple[GenerateRequest, list[str | bytes]]:
    """The request that the flags ask, and its files.

    Raises:
        ConfigError: a value is not valid, or a file cannot be read.
    """
    fields: dict[str, Any] = {"prompt": parsed.prompt}
    for name in _flagged():
        if (value := getattr(parsed, ASKED + name)) is not None:
            fields[name] = value
    uploads: list[str | bytes] = []
    for name in FILES:
        if files := getattr(parsed, ASKED + name):
            names = [upload_name(len(uploads) + index) for index in range(len(files))]
            uploads += [_read(file) for file in files]
            fields[name] = names if name == "image_urls" else names[0]
    if (suffix := _suffix(parsed.output)) and suffix not in FORMATS:
        raise ConfigError(f"--output: .{suffix} is no format here; there are: {', '.join(FORMATS)}")
    try:
        return GenerateRequest.model_validate(fields), uploads
    except ValidationError as error:
        finding = findings_of(error)[0]
        raise ConfigError(f"{_flag_of(finding.keys[0])}: {finding.message}") from error


def _suffix(output: Path) -> str:
    """Of a file to write, in small letters and without the dot; empty where `output` is a folder."""
    return "" if output.is_dir() else output.suffix.lower().lstrip(".")


def _read(file: str) -> bytes:
    try:
        return Path(file).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error


async def _drawn(
    settings: Settings, request: GenerateRequest, uploads: list[str | bytes], suffix: str
) -> tuple[GenerateResponse, list[Encoded]]:
    """Load the model, and draw.

    Raises:
        ServingError: NotReady where it cannot be loaded, else as /generate.
    """
    from cache_dit_serving.api.access import SCOPES, Caller
    from cache_dit_serving.api.native import NativeApi
    from cache_dit_serving.api.received import Received
    from cache_dit_serving.jobs.worker import PipelineWorker
    from cache_dit_serving.pipeline.assemble import assemble
    from cache_dit_serving.runners.ranked import RankedRunner

    logging.getLogger("cache_dit_serving").setLevel(logging.WARNING)
    worker = PipelineWorker(
        partial(RankedRunner.start if settings.parallelism else assemble, settings),
        max_queue=1,
        order=settings.server.queue_order,
        on_ready=lambda loaded: None,
    )
    api = NativeApi(settings, worker)
    worker.start()
    try:
        await _ready(worker)
        if suffix:
            request = _as_file(request, suffix, worker.loaded().model)
        asked = Received(request, "generate", False, (), tuple(uploads), "", Caller("", SCOPES))
        prepared = await api.prepare(asked)
        prepared.generation.changed = partial(_show, prepared.generation)
        worker.submit(prepared.generation)
        images = await api.drawn(prepared, asyncio.Event().wait())
        _clear_line()
        answer, _ = await api.finish(prepared, images)
    finally:
        api.decoding.close()
        if worker.state == "ready":
            worker.drain()
            await asyncio.to_thread(worker.join, ENDING_S)
    return answer, images


def _as_file(request: GenerateRequest, suffix: str, model: PlannedModel) -> GenerateRequest:
    """In the format of the file to write.

    Raises:
        InvalidRequest: the model does not make such files.
    """
    from cache_dit_serving.planning.fields import offered_fields

    makes = [OF_FIELD[field.name] for field, _ in offered_fields(model) if field.name in OF_FIELD]
    formats = [name for kind in makes for name in typing.get_args(kind)]
    if FORMATS[suffix] not in formats:
        raise InvalidRequest(f"--output: this model makes {', '.join(formats)}, not {suffix}", param="output")
    given = {name: FORMATS[suffix] for name, kind in OF_FIELD.items() if kind in makes}
    return request.model_copy(update={name: value for name, value in given.items() if getattr(request, name) is None})


async def _ready(worker: PipelineWorker) -> None:
    """Wait until the model is loaded, and show what it is at.

    Raises:
        NotReady: it cannot be loaded.
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
    """On the pipeline's thread, after each step."""
    if sys.stderr.isatty():
        cached = f", {generation.cached_steps} cached" if generation.cached_steps else ""
        print(f"\r\033[Kstep {generation.step} of {generation.steps}{cached}", end="", file=sys.stderr, flush=True)


def _clear_line() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _written(images: Sequence[Encoded], parsed: argparse.Namespace) -> list[Path]:
    """The files, once they are written."""
    to: Path = parsed.output
    files = []
    for image in images:
        if not _suffix(to):
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


def _flagged() -> dict[str, FieldInfo]:
    """The request's fields that have a flag of their name."""
    fields = GenerateRequest.model_fields
    return {name: field for name, field in fields.items() if name not in OURS and name not in FILES}


def _flag_of(field: str) -> str:
    return FILES[field][0] if field in FILES else "--" + field.replace("_", "-")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cache-dit-serving generate",
        usage="cache-dit-serving generate PROMPT [-o FILE] [flags]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("prompt", nargs="?", help="what to draw")
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        default=Path(),
        metavar="FILE",
        help="file, whose suffix chooses the format, or folder for files named by prompt and seed (default: here)",
    )
    parser.add_argument("--json", action="store_true", help="print the answer of /generate, without the files in it")
    request = parser.add_argument_group("request", "what is left out, the model's configuration says")
    for name, field in _flagged().items():
        words = [_flag_of(name), *(["--steps"] if name == "num_inference_steps" else [])]
        request.add_argument(
            *words, dest=ASKED + name, help=(field.description or "").replace("%", "%%"), **_kind_of(field)
        )
    for name, (flag, what) in FILES.items():
        several: dict[str, Any] = {"action": "append"} if name == "image_urls" else {"nargs": 1}
        request.add_argument(flag, dest=ASKED + name, metavar="FILE", help=what, **several)
    for group, flags in grouped():
        if group in MODEL_GROUPS:
            title, description = group.value
            section = parser.add_argument_group(title.lower(), description)
            for each in flags:
                each.add_to(section)
    parser.set_defaults(**{flag.dest: None for flag in FLAGS if flag.group not in MODEL_GROUPS})
    return parser


def _kind_of(field: FieldInfo) -> dict[str, Any]:
    """How argparse reads a field's value: lists and objects as JSON."""
    annotation: Any = field.annotation
    if types.NoneType in typing.get_args(annotation):
        annotation = next(part for part in typing.get_args(annotation) if part is not types.NoneType)
    if typing.get_origin(annotation) is Literal:
        return {"choices": typing.get_args(annotation)}
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if annotation in (int, float, str):
        return {"type": annotation, "metavar": {int: "N", float: "X", str: "TEXT"}[annotation]}
    return {"type": _json, "metavar": "JSON"}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # a class by its name
