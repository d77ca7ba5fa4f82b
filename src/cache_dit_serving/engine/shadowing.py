"""Choice of the requests that are drawn again without the cache, and the calls for it."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.inputs import Inputs
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.planned import Planned
from cache_dit_serving.planning.resolve import Resolved
from cache_dit_serving.planning.shadow import ShadowCalls


@dataclass(frozen=True)
class Shadowed:
    """A request that is to be drawn again: one of its outputs, at the speed that it asks for and at `lossless`."""

    output: int
    """Index of the output."""
    reference: Planned
    """The request at `lossless`."""
    asked: Planned | None = None
    """The request at the speed that it asks for; None: it is served at that."""

    async def each(self, change: Callable[[Planned], Awaitable[Planned]]) -> Shadowed:
        """Return it with its plans changed as the request's own is."""
        asked = await change(self.asked) if self.asked is not None else None
        return replace(self, reference=await change(self.reference), asked=asked)

    def with_calls(self, planned: Planned) -> Planned:
        """Return the request with the calls of its shadow run. The output that its caller gets is one of them."""
        served = planned.calls[self.output]
        asked = self.asked or planned
        cached = served if self.asked is None else replace(asked.calls[self.output], seed=served.seed)
        reference = replace(self.reference.calls[self.output], seed=served.seed)
        if served.cache.settings is None and served.num_inference_steps == reference.num_inference_steps:
            reference = served
        calls = ShadowCalls(self.output, cached, reference, asked.parameters(cached))
        return replace(planned, shadow=calls)


class Shadowing:
    """Random choice of requests."""

    def __init__(self, share: float, chance: Callable[[], float] = random.random) -> None:
        """
        Args:
            share: share of the cached generations that are chosen.
            chance: random number from 0 to below 1.
        """
        self._share = share
        self._chance = chance

    def chosen(self, resolved: Resolved, inputs: Inputs, planned: Planned, *, lowered: bool = False) -> Shadowed | None:
        """Return how a request is drawn again, if it is chosen and asks for a cache.

        Args:
            resolved: the request at the speed that it asks for.
            planned: its plan, as it is served.
            lowered: whether it is served at another speed. Then both outputs may have to be drawn.
        """
        if (planned.cache.settings is None and not lowered) or self._chance() >= self._share:
            return None
        fields = {"deadline_s": None, "profile": None}
        try:
            reference = plan(resolved.with_fields(fields | {"speed": "lossless", "cache": None}), inputs)
            asked = plan(resolved.with_fields(fields), inputs) if lowered else None
        except InvalidRequest:  # such as steps that the speed brings and the request's sigmas contradict
            return None
        return Shadowed(int(self._chance() * len(planned.calls)), reference, asked)
