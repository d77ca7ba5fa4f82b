"""Requests for a speed that live traffic has lowered: they get the next less approximate one, and a warning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.errors import SpeedLowered
from cache_dit_serving.planning.planned import Planned
from cache_dit_serving.planning.resolve import Resolved
from cache_dit_serving.schemas.answers import RequestWarning

OF_THE_SPEED = frozenset({"enabled", "strict"})
"""Fields of `cache` that change none of a speed's settings."""


@dataclass(frozen=True)
class Lowered:
    """A request that asks for a lowered speed."""

    asked: str
    instead: Speed
    resolved: Resolved
    """The request at the speed that it gets."""

    def warned(self, planned: Planned) -> Planned:
        """Return the request's plan with a warning about its speed."""
        message = (
            f"live traffic misses a floor of the speed {self.asked}, so this was drawn at {self.instead}; "
            "GET /quality has the evidence"
        )
        warning = RequestWarning(param="speed", code="speed_lowered", message=message)
        return replace(planned, warnings=(*planned.warnings, warning))


def lowering_of(resolved: Resolved, lowered: Mapping[str, Speed]) -> Lowered | None:
    """Return how a request is served whose speed is lowered; None for any other request.

    Cache settings of a request's own are not a speed, and stay.

    Args:
        lowered: speed that requests get, by the speed that is lowered.

    Raises:
        SpeedLowered: the request is strict about its cache.
    """
    request, ladder = resolved.request, resolved.model.speeds
    options = request.cache
    if options is not None and (not options.enabled or options.model_fields_set - OF_THE_SPEED):
        return None
    if request.deadline_s is not None and request.speed is None and options is None:
        return None  # it leaves the speed to the server
    asked = next((name for name in lowered if name == (request.speed or ladder.default_speed)), None)
    if asked is None:
        return None
    instead = lowered[asked]
    if options is not None and options.strict:
        raise SpeedLowered(
            f"live traffic misses a floor of the speed {asked}; leave cache.strict out to get {instead}, "
            "or send a less approximate speed",
            param="speed",
        )
    return Lowered(asked, instead, resolved.with_fields({"speed": instead, "cache": None}))
