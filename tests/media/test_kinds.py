"""The table of kinds agrees with the schemas of requests and answers, and each row makes files."""

from __future__ import annotations

import typing

import pytest

from cache_dit_serving.media.audio import AudioFormat
from cache_dit_serving.media.encode import encode
from cache_dit_serving.media.images import ImageFormat
from cache_dit_serving.media.kinds import KINDS, MEDIA_TYPES, OutputSpec
from cache_dit_serving.media.values import Media, MediaKind
from cache_dit_serving.media.video import VideoFormat
from cache_dit_serving.schemas.answers import ComparedImage, GenerateResponse
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.random_outputs import two_outputs

LITERALS = {MediaKind.IMAGE: ImageFormat, MediaKind.VIDEO: VideoFormat, MediaKind.AUDIO: AudioFormat}


def test_every_kind_has_a_row() -> None:
    assert set(KINDS) == set(MediaKind) == {cls.kind for cls in typing.get_args(Media)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_names_what_the_schemas_have(kind: MediaKind) -> None:
    row = KINDS[kind]
    assert row.answer_key in GenerateResponse.model_fields
    assert str(kind) in ComparedImage.model_fields
    assert tuple(row.formats) == typing.get_args(LITERALS[kind])
    described = GenerateRequest.model_fields[row.format_field]
    literal, _ = typing.get_args(described.annotation)
    assert typing.get_args(literal) == tuple(row.formats)
    assert f"{row.default_format} (" in (described.description or "")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in KINDS[kind].formats])
def test_a_row_encodes_in_each_of_its_formats(kind: MediaKind, name: str) -> None:
    content, extension = encode(two_outputs(kind)[0], OutputSpec(name), {})
    assert content
    assert MEDIA_TYPES[extension] == KINDS[kind].formats[name]
