"""A blank output is of the same kind, shape and length, and holds nothing of what was made."""

from __future__ import annotations

import pytest

from cache_dit_serving.media.blank import blank_of
from cache_dit_serving.media.encode import encode
from cache_dit_serving.media.kinds import KINDS, OutputSpec
from cache_dit_serving.media.values import MediaKind, VideoOutput
from tests.support.random_outputs import two_outputs


@pytest.mark.parametrize("kind", MediaKind)
def test_a_blank_output_has_the_shape_and_nothing_else(kind: MediaKind) -> None:
    made = two_outputs(kind)[0]
    blank = blank_of(made)
    assert type(blank) is type(made)
    assert (blank.array.shape, blank.array.dtype) == (made.array.shape, made.array.dtype)
    assert not blank.array.any()
    assert made.array.any()
    if isinstance(blank, VideoOutput) and isinstance(made, VideoOutput):
        assert blank.fps == made.fps
        assert blank.audio is not None
        assert made.audio is not None
        assert blank.audio.array.shape == made.audio.array.shape
        assert not blank.audio.array.any()
    for name in KINDS[kind].formats:
        assert encode(blank, OutputSpec(name), {})[0]
