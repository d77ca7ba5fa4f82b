"""Command line of `cache-dit-serving generate`, and its request, which is checked before a model is loaded."""

from __future__ import annotations

import argparse
import json
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from cache_dit_serving.cli.command_line import CommandLine
from cache_dit_serving.cli.flags import FLAGS, Heading, grouped
from cache_dit_serving.config.catalog import catalog
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.engine.inputs import upload_name
from cache_dit_serving.errors import ConfigError, InvalidRequest
from cache_dit_serving.findings import findings_of
from cache_dit_serving.media.kinds import FORMATS_OF_FIELD, KINDS
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.planning.fields import FIELDS
from cache_dit_serving.schemas.request import GenerateRequest

DESCRIPTION = """\
Draw into files, without a server. The settings are those of `cache-dit-serving serve`, the fields those of /generate.

  examples:
    cache-dit-serving generate "a red apple on a blue background" --seed 7
    cache-dit-serving generate "a red apple" -o apples.webp --num-images 4 --speed fast
    cache-dit-serving generate "a green apple" --image apple.png --strength 0.6
    cache-dit-serving generate "a robot" --config qwen-image --compile -o robot.png
    cache-dit-serving generate "a robot" --config models.yaml --model kontext
"""
MODEL_GROUPS = (Heading.MODEL, Heading.CACHE, Heading.PARALLELISM, Heading.QUANTISATION, Heading.LORA, Heading.MEMORY)
"""Groups of `serve`'s flags that concern the model."""
FILE_FLAGS = {
    "image_urls": ("--image", "picture to edit or to start from; repeat it for several, if the model takes them"),
    "mask_url": ("--mask", "mask of the picture: white is redrawn"),
    "control_url": ("--control", "picture that guides the layout"),
    "video_url": ("--video", "video to start from, MP4 or WebM"),
    "last_image_url": ("--last-image", "last picture of a video"),
}
"""Fields that hold files, with their flag and its help. The flag takes a file's path."""
OURS = {"prompt", "model", "output_format", "output_dir", "profile", "cache", "priority"}
"""Fields without a flag: another flag or argument sets the same, or the field has no meaning without a server."""
FORMATS = {"jpg": "jpeg"} | {name: name for kind in KINDS.values() for name in kind.formats}
"""Format by a file's suffix."""
MODEL_HELP = (
    "which model, by its name or an alias, where the configuration lists several under `models` "
    "(default: the default one of the list, which standard error names)"
)
ASKED = "asked_"
"""Prefix of a field's attribute in the parsed flags, because flags of `serve` have the same names."""


def request_of(parsed: argparse.Namespace) -> tuple[GenerateRequest, list[str | bytes]]:
    """Return the request that the flags describe, and the contents of its files.

    Raises:
        ConfigError: a value is invalid, or a file cannot be read.
    """
    fields: dict[str, Any] = {"prompt": parsed.prompt}
    for name in _flagged():
        if (value := getattr(parsed, ASKED + name)) is not None:
            fields[name] = value
    uploads: list[str | bytes] = []
    for name in FILE_FLAGS:
        if files := getattr(parsed, ASKED + name):
            names = [upload_name(len(uploads) + index) for index in range(len(files))]
            uploads += [_read(file) for file in files]
            fields[name] = names if name == "image_urls" else names[0]
    if (suffix := suffix_of(parsed.output)) and suffix not in FORMATS:
        raise ConfigError(f"--output: .{suffix} is no format here; there are: {', '.join(FORMATS)}")
    try:
        return GenerateRequest.model_validate(fields), uploads
    except ValidationError as error:
        finding = findings_of(error)[0]
        raise ConfigError(f"{_flag_of(finding.keys[0])}: {finding.message}") from error


def suffix_of(output: Path) -> str:
    """Return the suffix of the output file, in lower case without the dot; empty if `output` is a folder."""
    return "" if output.is_dir() else output.suffix.lower().lstrip(".")


def _read(file: str) -> bytes:
    try:
        return Path(file).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error


def check_beforehand(request: GenerateRequest, settings: Settings, suffix: str) -> None:
    """Refuse a request that the settings alone exclude, before the model is loaded.

    Raises:
        InvalidRequest: the prompt, class or files are missing, a value exceeds the configuration's limits, or a model
            of `configs/` does not make files of this suffix.
    """
    if not request.prompt and request.class_label is None and not any(getattr(request, name) for name in FILE_FLAGS):
        raise InvalidRequest('say what to draw: cache-dit-serving generate "a red apple"', param="prompt")
    kind, tolerant = _known_kind(settings), settings.server.unsupported_fields == "warn"
    for field in FIELDS:
        if field.makes in (None, kind):
            field.check_limits(request, settings.limits, tolerant=tolerant)
    if suffix and kind is not None:
        check_format(suffix, [KINDS[kind].format_field])


def check_format(suffix: str, format_fields: Sequence[str]) -> None:
    """Check the suffix of the output file.

    Args:
        format_fields: fields of the request that choose the model's format, such as `image_format`.

    Raises:
        InvalidRequest: the suffix is not one of their formats.
    """
    formats = [name for field in format_fields for name in FORMATS_OF_FIELD[field]]
    if FORMATS[suffix] not in formats:
        raise InvalidRequest(f"--output: this model makes {', '.join(formats)}, not {suffix}", param="output")


def _known_kind(settings: Settings) -> MediaKind | None:
    """Return the kind of the model's output, by its entry in `configs/`; None without one or with another class."""
    if settings.model.pipeline_class is not None:
        return None
    tasks = [entry.about.task for entry in catalog() if settings.model.path in entry.hub_ids]
    task = next((task for task in tasks if task), None)
    if task is None:
        return None
    # Image last: "image to video" makes a video.
    kinds = sorted(KINDS, key=lambda kind: kind is MediaKind.IMAGE)
    return next((kind for kind in kinds if kind in task), MediaKind.IMAGE)


def _flagged() -> dict[str, FieldInfo]:
    """Return the fields of the request that have a flag of the same name."""
    fields = GenerateRequest.model_fields
    return {name: field for name, field in fields.items() if name not in OURS and name not in FILE_FLAGS}


def _flag_of(field: str) -> str:
    return FILE_FLAGS[field][0] if field in FILE_FLAGS else "--" + field.replace("_", "-")


def parser() -> CommandLine:
    parser = CommandLine("cache-dit-serving generate", "PROMPT [-o FILE] [flags]", DESCRIPTION)
    parser.add_argument("prompt", nargs="?", help="description of the output")
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        default=Path(),
        metavar="FILE",
        help="file, whose suffix chooses the format, or folder for files named by prompt and seed (default: here)",
    )
    parser.add_argument("--json", action="store_true", help="print the answer of /generate, without the files in it")
    request = parser.add_argument_group("request", "default of each: the model's configuration")
    for name, field in _flagged().items():
        words = [_flag_of(name), *(["--steps"] if name == "num_inference_steps" else [])]
        request.add_argument(
            *words, dest=ASKED + name, help=(field.description or "").replace("%", "%%"), **_kind_of(field)
        )
    for name, (flag, what) in FILE_FLAGS.items():
        several: dict[str, Any] = {"action": "append"} if name == "image_urls" else {"nargs": 1}
        request.add_argument(flag, dest=ASKED + name, metavar="FILE", help=what, **several)
    add_model_flags(parser)
    return parser


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Give a command that loads a model the launcher's flags of the model; those of the server have no value."""
    for group, flags in grouped():
        if group in MODEL_GROUPS:
            title, description = group.value
            section = parser.add_argument_group(title.lower(), description or None)
            if group is Heading.MODEL:
                section.add_argument("--model", metavar="NAME", help=MODEL_HELP)
            for each in flags:
                each.add_to(section)
    parser.set_defaults(**{flag.dest: None for flag in FLAGS if flag.group not in MODEL_GROUPS})


def _kind_of(field: FieldInfo) -> dict[str, Any]:
    """Return argparse's options for reading a field. Lists and objects are read as JSON."""
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
        return text  # the name of a class
