"""Videos as clients send them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from cache_dit_serving.media.values import VideoOutput
from cache_dit_serving.media.video import encode_video
from tests.support.images import apple

FRAMES = [apple(64, 48).rotate(8 * index).filter(ImageFilter.GaussianBlur(3)) for index in range(12)]


def mp4(frames: list[Image.Image] = FRAMES, fps: float = 12.0) -> bytes:
    array = np.stack([np.asarray(frame, dtype=np.float32) / 255 for frame in frames])
    return encode_video(VideoOutput(array, fps), "mp4", {})
