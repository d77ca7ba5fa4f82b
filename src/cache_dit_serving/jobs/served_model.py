"""One of the models that share the pipeline's thread, with all that is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Final

from cache_dit_serving.config.residency import Resident
from cache_dit_serving.jobs.model_loading import ModelLoading
from cache_dit_serving.jobs.rates import Rates
from cache_dit_serving.jobs.residency import Residency
from cache_dit_serving.jobs.shadow_runs import ShadowRuns


class ServedModel:
    """A model, its loading, its place in memory, and what is learnt from its outputs."""

    def __init__(
        self,
        name: str,
        loading: ModelLoading,
        rates: Rates,
        *,
        residency: Residency,
        shadows: ShadowRuns,
        resident: Resident = "always",
        expected_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        """
        Args:
            name: name in requests; empty for the only model of a server.
            expected_bytes: returns the bytes of its weights by its files, for its first load; 0: not known.
        """
        # Read once: the queue asks at each request.
        self._expected_bytes = cache(expected_bytes)
        self.name: Final = name
        self.loading: Final = loading
        self.rates: Final = rates
        self.residency: Final = residency
        self.shadows: Final = shadows
        self.resident: Final = resident

    @property
    def awake(self) -> bool:
        """True if it can draw at once."""
        return self.residency.wakes_from is None

    @property
    def device(self) -> str | None:
        """Device of its weights; None before its first load."""
        return self.loading.runner.facts.device if self.loading.has_loaded else None

    @property
    def weights(self) -> Mapping[str, int]:
        """Bytes of its weights on the device while it is awake, counted from its tensors, by their names.

        Weights that it shares with other models have the same name there. Before its first load its files tell the
        bytes.
        """
        if not self.loading.has_loaded:
            return {self.name: self._expected_bytes()}
        facts = self.loading.runner.facts
        if facts.offload is None:
            return {each.weights or f"{self.name}/{each.name}": each.bytes for each in facts.components}
        # One component at a time lies on the device, or none as a whole.
        return {self.name: max((each.bytes for each in facts.components), default=0) if facts.offload == "model" else 0}

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights on the device while it is awake; 0 before its first load."""
        return sum(self.weights.values()) if self.loading.has_loaded else 0

    @property
    def host_bytes(self) -> int:
        """Bytes of its weights that wait in host memory; 0 while it is awake or on disk."""
        return self.loading.runner.memory().get("sleeping_weight_bytes", 0) if self.residency.level == "host" else 0
