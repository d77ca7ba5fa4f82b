"""Encoders of H.264 for MP4: x264 on the CPU, and NVENC on GPUs that have an encoder."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import version

from cache_dit_serving.config.settings import EncoderChoice
from cache_dit_serving.errors import LoadError

logger = logging.getLogger(__name__)

PRESET = "fast"
"""Effort of x264, by measure: `docs/benchmarks/files.md`."""
THREADS = 4
"""Frames that x264 encodes at once. They change the file: by x264's own choice it would differ between machines."""
TRIAL_SIDE = 256
"""Height and width of the frame that tries an encoder, px."""
WHERE = (
    "L4, L40S, T4, A10 and RTX cards have this encoder, A100, H100 and H200 do not. In a container, "
    "NVIDIA_DRIVER_CAPABILITIES must name video. Or choose x264 or auto"
)
"""Remedy where NVENC is chosen and missing."""


@dataclass(frozen=True)
class VideoEncoder:
    """One of ffmpeg's encoders, with its options."""

    codec: str
    options: Mapping[str, str]
    least_side: int = 2
    """Least width and height, px. x264 encodes smaller videos."""


def x264(preset: str = PRESET, threads: int = THREADS) -> VideoEncoder:
    """Return x264 at CRF 18, which is visually lossless according to ffmpeg's documentation.

    `cpu-independent` gives the same bytes for the same frames. Without it, x264's vectorised macroblock tree reads
    uninitialised memory, and files differ from run to run (at 64 x 64 nearly always, at 832 x 480 half of the time).

    Args:
        preset: effort, by x264's names.
        threads: frames that are encoded at once.
    """
    options = {"crf": "18", "x264-params": "cpu-independent=1", "preset": preset, "threads": str(threads)}
    return VideoEncoder("libx264", options)


X264 = x264()
NVENC = VideoEncoder(
    "h264_nvenc", {"preset": "p5", "tune": "hq", "rc": "vbr", "cq": "19", "b": "0", "profile": "high"}, least_side=160
)
"""NVIDIA's encoder at constant quality. Its least width is 145 px with H.264; ffmpeg reads `b: 0` as no bit rate."""


@functools.cache
def video_encoder(choice: EncoderChoice) -> VideoEncoder:
    """Return the encoder of MP4 files that a configuration chooses. NVENC is tried with a small video once a process.

    Raises:
        LoadError: NVENC is chosen, and this machine has none.
    """
    if choice == "x264":
        return X264
    try:
        _try(NVENC)
    except (OSError, ValueError) as error:  # PyAV's errors are of these classes too
        if choice == "auto":
            logger.info("outputs.video_encoder: MP4 files are encoded by x264, because this machine has no NVENC")
            return X264
        raise LoadError(f"outputs.video_encoder: nvenc cannot be opened here; {WHERE}") from error
    return NVENC


def encoder_name(choice: EncoderChoice) -> str:
    """Return the name of the chosen encoder, and the version of the library that has it."""
    return f"{video_encoder(choice).codec}, PyAV {version('av')}"


def _try(encoder: VideoEncoder) -> None:
    """Encode a small video.

    Raises:
        OSError: the machine lacks what the encoder needs.
        ValueError: the encoder takes none of the options.
    """
    import av  # here: PyAV takes 18 MB, and a server of images has no use for it

    context = av.CodecContext.create(encoder.codec, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.height, context.width, context.pix_fmt, context.framerate = TRIAL_SIDE, TRIAL_SIDE, "yuv420p", Fraction(24)
    context.options = dict(encoder.options)
    context.encode(av.VideoFrame(TRIAL_SIDE, TRIAL_SIDE, "yuv420p"))
    context.encode(None)
