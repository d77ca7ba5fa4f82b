"""Outputs of random values, of each kind."""

from __future__ import annotations

import numpy as np

from cache_dit_serving.media.values import AudioOutput, ImageOutput, Media, MediaKind, VideoOutput


def two_outputs(kind: MediaKind) -> tuple[Media, Media]:
    """Return two different outputs of one kind and shape."""
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
