"""Fields of the answer: form, folder and file formats of the outputs, and step records."""

from __future__ import annotations

import re
from dataclasses import replace

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.images import DEFAULT_QUALITY
from cache_dit_serving.media.kinds import KINDS
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.media.video import MOST_GIF_FPS
from cache_dit_serving.planning.draft import Draft
from cache_dit_serving.planning.fields.field import RequestField
from cache_dit_serving.planning.fields.video import fps_of
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.schemas.answers import RequestWarning
from cache_dit_serving.schemas.request import GenerateRequest

FOLDER_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class IncludeStats(RequestField):
    name = "include_stats"

    def default(self, model: PlannedModel) -> bool:
        return False


class OutputFormat(RequestField):
    name = "output_format"

    def default(self, model: PlannedModel) -> str:
        return "base64"


class OutputDir(RequestField):
    name = "output_dir"

    def no_effect(self, request: GenerateRequest, model: PlannedModel) -> str | None:
        if request.wants_files:
            return None
        return 'output_dir has no effect with output_format base64; send "output_format": "path" or "url" with it'

    def check(self, request: GenerateRequest, model: PlannedModel) -> None:
        if request.output_dir is None:
            return
        if not all(FOLDER_NAME.fullmatch(part) for part in request.output_dir.split("/")):
            raise InvalidRequest(
                "output_dir must be a folder relative to the server's output folder: names of letters, digits, "
                "'.', '_' and '-', with '/' between them, none beginning with '.'",
                param="output_dir",
            )


class FileFormat(RequestField):
    """File format of one kind of output."""

    def __init__(self, makes: MediaKind) -> None:
        self.makes = makes
        self.name = KINDS[makes].format_field

    def default(self, model: PlannedModel) -> str:
        return KINDS[model.traits.makes].default_format

    def fill_in(self, draft: Draft, request: GenerateRequest) -> None:
        super().fill_in(draft, request)
        draft.output = replace(draft.output, format=getattr(request, self.name) or self.default(draft.model))


class ImageQuality(RequestField):
    name = "image_quality"
    makes = MediaKind.IMAGE

    def default(self, model: PlannedModel) -> int:
        return DEFAULT_QUALITY

    def fill_in(self, draft: Draft, request: GenerateRequest) -> None:
        draft.output = replace(draft.output, image_quality=request.image_quality)

    def no_effect(self, request: GenerateRequest, model: PlannedModel) -> str | None:
        if request.encoding != "png":
            return None
        return 'image_quality has no effect on png, which is lossless; send "image_format": "jpeg" or "webp" with it'


class VideoFormat(FileFormat):
    """File format of a clip. Not every one holds its frame rate or its sound."""

    def check(self, request: GenerateRequest, model: PlannedModel) -> None:
        fps = fps_of(request, model)
        if request.video_format == "gif" and fps > MOST_GIF_FPS:
            raise InvalidRequest(
                f"a gif shows at most {MOST_GIF_FPS} frames a second and fps is {fps:g}; send a lower fps, or "
                '"video_format": "mp4" or "webp"',
                param="video_format",
            )

    def fill_in(self, draft: Draft, request: GenerateRequest) -> None:
        super().fill_in(draft, request)
        if draft.model.traits.heard and draft.output.format != "mp4":
            message = f"a {draft.output.format} has no sound, and the model's is left out; an mp4 holds it"
            draft.warnings.append(RequestWarning(param=self.name, code="adjusted", message=message))


FORMATS = [VideoFormat(kind) if kind is MediaKind.VIDEO else FileFormat(kind) for kind in KINDS]
FIELDS: tuple[RequestField, ...] = (IncludeStats(), OutputFormat(), OutputDir(), *FORMATS, ImageQuality())
