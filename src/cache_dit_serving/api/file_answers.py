"""Answers of /generate that are the output's file itself, where `Accept` asks for one."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from cache_dit_serving.api.answering import JSON
from cache_dit_serving.api.evidence_headers import evidence_headers
from cache_dit_serving.api.receive import received
from cache_dit_serving.engine.answers import answer_of
from cache_dit_serving.engine.models import Models
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.kinds import KINDS, MEDIA_TYPES, Kind
from cache_dit_serving.planning.resolve import Resolved
from cache_dit_serving.schemas.request import GenerateRequest

FILES = frozenset(MEDIA_TYPES.values())
ANY_OF_KIND = ("image/*", "video/*", "audio/*")


def wanted_file(headers: Headers) -> str | None:
    """Return the media type of the file that a request prefers to JSON; None for JSON.

    The first of the media ranges with the greatest weight decides, RFC 9110 section 12.5.1. `*/*` means JSON.
    """
    ranges: list[tuple[float, str]] = []
    for each in ",".join(headers.getlist("Accept")).lower().split(","):
        media_range, *parameters = (part.strip() for part in each.split(";"))
        weights = [part.removeprefix("q=") for part in parameters if part.startswith("q=")]
        if media_range in FILES or media_range in (*ANY_OF_KIND, JSON, "application/*", "*/*"):
            ranges.append((_weight(weights[0]) if weights else 1.0, media_range))
    if not ranges:
        return None
    _, best = max(ranges, key=lambda weighted: weighted[0])
    return best if best in FILES or best in ANY_OF_KIND else None


def _weight(text: str) -> float:
    """Return a weight of `Accept`; 0 for none that makes sense."""
    try:
        return float(text)
    except ValueError:
        return 0.0


class FileAnswers:
    """One output, as its file."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def generated(self, request: GenerateRequest, http: Request, media_type: str) -> Response:
        """Generate, and answer with the file; the evidence is in headers.

        Args:
            media_type: as :func:`wanted_file` returns it.

        Raises:
            InvalidRequest: this model makes no such file, or the request asks for several outputs or another form.
            ServingError: as :meth:`Engine.generate`.
        """
        engine, request = await self._models.for_request(request)
        intake = received(request, http)
        resolved = engine.resolve(intake)
        kind = KINDS[resolved.model.traits.makes]
        prepared = await engine.prepare(intake, _as_one_file(resolved, kind, media_type))
        outputs = await engine.draw(prepared)
        (output,) = outputs
        headers = evidence_headers(answer_of(prepared, outputs, [""]))  # nothing is delivered beside the file
        return Response(output.content, media_type=kind.formats[output.extension], headers=headers)


def _as_one_file(resolved: Resolved, kind: Kind, media_type: str) -> Resolved:
    """Return a request in the file format that its `Accept` asks for.

    Raises:
        InvalidRequest: naming what contradicts the header.
    """
    request = resolved.request
    asked = getattr(request, kind.format_field)
    formats = [name for name, of_format in kind.formats.items() if _holds(media_type, of_format)]
    if not formats:
        raise InvalidRequest(
            f"the header Accept asks for {media_type}, and this model makes {kind.answer_key}: accept "
            f"{', '.join(dict.fromkeys(kind.formats.values()))} or {JSON}"
        )
    if asked is not None and asked not in formats:
        raise InvalidRequest(
            f"{kind.format_field} is {asked} and the header Accept asks for {media_type}; leave one of them out",
            param=kind.format_field,
        )
    if request.output_format not in (None, "base64"):
        raise InvalidRequest(
            f"output_format {request.output_format} is for answers of JSON; leave it out, or accept {JSON}",
            param="output_format",
        )
    if (request.num_images or 1) > 1:
        raise InvalidRequest(f"a file holds one output; leave num_images out, or accept {JSON}", param="num_images")
    return resolved.with_fields({kind.format_field: asked or formats[0]})


def _holds(media_range: str, media_type: str) -> bool:
    return media_range == media_type or (
        media_range.endswith("/*") and media_type.startswith(media_range.removesuffix("*"))
    )
