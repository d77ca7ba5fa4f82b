"""A generation that is to be drawn again: its call with the cache, and the same request without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cache_dit_serving.planning.call import ImageCall


@dataclass(frozen=True)
class ShadowCalls:
    """Two calls of one request that differ in the cache, and in the steps where its speed has steps of its own."""

    output: int
    """Index of the output that is compared."""
    cached: ImageCall
    """Call at the speed that the request asks for."""
    reference: ImageCall
    """Call of the same request at `lossless`."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Request that redraws the cached output, as its file has it."""
