"""The table of kinds agrees with the schemas of requests and answers, and each row makes files and distances."""

from __future__ import annotations

import typing

import numpy as np
import pytest

from cache_dit_serving.media.audio import AudioFormat
from cache_dit_serving.media.encode import encode
from cache_dit_serving.media.images import ImageFormat
from cache_dit_serving.media.kinds import KINDS, MEDIA_TYPES, OutputSpec
from cache_dit_serving.media.values import AudioOutput, ImageOutput, Media, MediaKind, VideoOutput
from cache_dit_serving.media.video import VideoFormat
from cache_dit_serving.schemas.answers import ComparedImage, GenerateResponse
from cache_dit_serving.schemas.request import GenerateRequest

LITERALS = {MediaKind.IMAGE: ImageFormat, MediaKind.VIDEO: VideoFormat, MediaKind.AUDIO: AudioFormat}


def outputs(kind: MediaKind) -> tuple[Media, Media]:
    random = np.random.default_rng(1)
    made: dict[MediaKind, list[Media]] = {kind: [] for kind in MediaKind}
    for _ in range(2):
        frames = random.random((3, 16, 16, 3), dtype=np.float32)
        sound = AudioOutput(random.random((1, 4000), dtype=np.float32) - 0.5, 8_000)
        made[MediaKind.IMAGE].append(ImageOutput(frames[0]))
        made[MediaKind.VIDEO].append(VideoOutput(frames, 8.0, sound))
        made[MediaKind.AUDIO].append(sound)
    first, second = made[kind]
    return first, second


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
    content, extension = encode(outputs(kind)[0], OutputSpec(name), {})
    assert content
    assert MEDIA_TYPES[extension] == KINDS[kind].formats[name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_measures_its_outputs(kind: MediaKind) -> None:
    ours, reference = outputs(kind)
    apart, same = KINDS[kind].distance(ours, reference), KINDS[kind].distance(ours, ours)
    assert (same.max_difference, same.mean_difference) == (0, 0)
    assert 0 < apart.mean_difference < apart.max_difference
    assert apart.shown.kind is kind
    assert float(abs(apart.shown.array).max()) == pytest.approx(1)
    measured = {name for name in ("psnr_db", "ssim", "snr_db", "worst_frame") if getattr(apart, name) is not None}
    assert (
        measured
        == {
            MediaKind.IMAGE: {"psnr_db", "ssim"},
            MediaKind.VIDEO: {"psnr_db", "ssim", "worst_frame"},
            MediaKind.AUDIO: {"snr_db"},
        }[kind]
    )
