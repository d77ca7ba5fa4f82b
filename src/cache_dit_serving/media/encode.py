"""Encoding of an output of any kind into a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cache_dit_serving.media.kinds import KINDS, OutputSpec
from cache_dit_serving.media.outputs import File
from cache_dit_serving.media.values import Media


def encode(
    media: Media, output: OutputSpec, parameters: dict[str, Any], warnings: Sequence[dict[str, Any]] = ()
) -> File:
    """Encode an output in the format that the request chose, and sign it where the operator has it signed.

    Args:
        parameters: the request that made the output; written into formats that hold text.
        warnings: the request's warnings; written into a PNG only.

    Raises:
        InternalError: it cannot be encoded or signed.
    """
    kind = KINDS[media.kind]
    content = kind.encode(media, output, parameters, warnings)
    if output.sign is not None and output.source is not None:
        content = output.sign(content, kind.formats[output.format], output.source, output.ingredients)
    return content, output.format
