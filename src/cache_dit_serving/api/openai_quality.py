"""`quality` of OpenAI's images as a speed of this server's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.caching.speeds import SPEEDS, SpeedLadder
from cache_dit_serving.schemas.answers import RequestWarning
from cache_dit_serving.schemas.openai import AnsweredQuality, Quality
from cache_dit_serving.schemas.request import GenerateRequest

SPEED_OF: Mapping[Quality, Speed] = {
    "low": "fast",
    "medium": "balanced",
    "high": "high",
    "hd": "high",
    "xhigh": "lossless",
    "max": "lossless",
}
"""Speed of each quality; the others ask for the server's default."""
QUALITY_OF: Mapping[str, AnsweredQuality] = {"fast": "low", "balanced": "medium", "high": "high", "lossless": "max"}


class QualityChoice(NamedTuple):
    """Speed for a quality; None if the request or the server chooses it."""

    speed: Speed | None = None
    warnings: tuple[RequestWarning, ...] = ()


def choose_speed(quality: Quality | None, request: GenerateRequest, speeds: SpeedLadder) -> QualityChoice:
    """Return the speed that a quality asks for, or the nearest more exact one that requests may name."""
    wanted = SPEED_OF.get(quality) if quality is not None else None
    if wanted is None:
        return QualityChoice()
    explicit = next((name for name in ("speed", "cache") if getattr(request, name) is not None), None)
    if explicit is not None:
        return QualityChoice(
            None, (_warning("no_effect", f"quality was ignored: {explicit} says what the cache does"),)
        )
    exact_enough = [speed for speed in speeds.allowed if SPEEDS.index(speed) <= SPEEDS.index(wanted)]
    speed = exact_enough[-1]
    if speed == wanted:
        return QualityChoice(speed)
    message = f"quality {quality} is the speed {wanted}, which this server does not take; {speed} was used"
    return QualityChoice(speed, (_warning("adjusted", message),))


def _warning(code: str, message: str) -> RequestWarning:
    return RequestWarning(param="quality", code=code, message=message)
