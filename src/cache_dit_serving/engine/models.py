"""The models of a server by the names that requests choose them by."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Final

from cache_dit_serving import __version__
from cache_dit_serving.config.residency import SleepLevel
from cache_dit_serving.engine.engine import LEAST_S, Engine
from cache_dit_serving.errors import DeadlineExceeded, NotFound, NotReady, QueueFull
from cache_dit_serving.findings import cut
from cache_dit_serving.jobs.model_loading import State
from cache_dit_serving.schemas.answers import FlushResponse, HealthResponse, ModelHealth, ModelInfo, SleepResponse
from cache_dit_serving.schemas.request import GenerateRequest

LOAD_AGAIN_S = 5.0
"""Seconds after which a client may ask again that found too many others waiting for a load."""


class Models:
    """Engines of one or several models, which share a thread, a queue and the resources of the server."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        """
        Args:
            engines: the default one first.
        """
        self.engines: Final = tuple(engines)
        self.default: Final = self.engines[0]
        self.thread: Final = self.default.worker.thread
        self._waiting_for_load = 0

    @property
    def are_several(self) -> bool:
        """True if requests choose among models."""
        return len(self.engines) > 1

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all models, the default one's first.

        Raises:
            NotReady: the only model has no configured name, and is not loaded yet.
        """
        return tuple(name for engine in self.engines for name in engine.names)

    def find(self, name: str | None, *, param: str = "model") -> Engine:
        """Return the engine of a model, loaded or not; the default one's for None.

        Args:
            param: field of the request that names it.

        Raises:
            NotFound: there is no such model.
            NotReady: as :attr:`names`.
        """
        if name is None:
            return self.default
        found = next((each for each in self.engines if name in each.all_names), None)
        if found is None:
            listed = ", ".join(self.names)
            raise NotFound(
                f"the model {cut(name)!r} is not served here; there is {listed}", param=param, code="model_not_found"
            )
        return found

    async def loaded(self, name: str | None, within_s: float = math.inf, *, param: str = "model") -> Engine:
        """Return the engine of a model, once it was loaded for the first time.

        Args:
            within_s: seconds for its load, beside the server's own limit.
            param: field of the request that names it.

        Raises:
            NotFound: there is no such model.
            QueueFull: too many requests wait for a load already.
            DeadlineExceeded: it is not loaded in time. Its load goes on.
            NotReady: it cannot be loaded, or the server is shutting down.
        """
        engine = self.find(name, param=param)
        load = engine.worker.load()
        if load is None:
            return engine
        limits = engine.settings.limits
        if self._waiting_for_load >= limits.max_queue:
            raise QueueFull(
                f"{self._waiting_for_load} requests wait for a model to be loaded, as many as this server lets wait; "
                "come back later",
                retry_after_s=LOAD_AGAIN_S,
            )
        limit_s = min(limits.max_request_s, within_s)
        self._waiting_for_load += 1
        try:
            # Others wait for the same load: it goes on when one of them leaves.
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(load)), limit_s)
        except TimeoutError:
            its_own = limit_s == within_s
            whose = f"its deadline_s of {limit_s:g} s" if its_own else f"the {limit_s:g} s of this server"
            raise DeadlineExceeded(
                f"the model was not loaded within {whose}; its load goes on", param="deadline_s" if its_own else None
            ) from None
        finally:
            self._waiting_for_load -= 1
        return engine

    async def for_request(self, request: GenerateRequest) -> tuple[Engine, GenerateRequest]:
        """Return the engine of a request's model once it was loaded, and the request with the rest of its deadline.

        Raises:
            ServingError: as :meth:`loaded`.
        """
        if request.deadline_s is None:
            return await self.loaded(request.model), request
        began = time.monotonic()
        engine = await self.loaded(request.model, request.deadline_s)
        left_s = max(LEAST_S, request.deadline_s - (time.monotonic() - began))
        return engine, request.model_copy(update={"deadline_s": left_s}) if self.are_several else request

    @property
    def ready(self) -> bool:
        """True if the server can generate, and the database that the settings name has been opened."""
        return self.thread.state == "ready" and not self.default.waits_for_database

    def health(self) -> HealthResponse:
        """Return the health of a server that is ready, with its queue, and of several models the state of each.

        Raises:
            NotReady: loading (with the stage), failed (with the reason) or draining.
        """
        if not self.are_several:
            return self.default.health()
        state = self.thread.state
        if state != "ready":
            raise self._not_ready(state)
        reason = self.default.reason_of_health()
        told = [self._health_of(engine) for engine in self.engines]
        failed = [f"{each.name} cannot be served: {each.reason}" for each in told if each.status == "failed"]
        return HealthResponse(
            status=state,
            reason="; ".join(filter(None, (reason, *failed))) or None,
            version=__version__,
            queue=self.thread.report(),
            models=told,
        )

    def _not_ready(self, state: State) -> NotReady:
        """Return the error of a server whose thread serves no model: of the one that is at this state."""
        first = next((each for each in self.engines if each.worker.state == state), self.default)
        error = first.worker.model.loading.not_ready()
        return NotReady(f"{first.names[0]}: {error.message}", code=error.code, retry_after_s=error.retry_after_s)

    def _health_of(self, engine: Engine) -> ModelHealth:
        model = engine.worker.model
        state, level = model.loading.state, model.residency.level
        is_asleep = state == "ready" and level is not None
        return ModelHealth(
            name=model.name,
            status="asleep" if is_asleep else state,
            level=level if is_asleep else None,
            reason=model.loading.reason,
            weight_bytes=model.weight_bytes,
            resident=model.resident,
            default=engine is self.default,
            ready_in_s=round(model.residency.wake_left_s(), 1) if model.loading.has_loaded else None,
        )

    def model_info(self, engine: Engine) -> ModelInfo:
        """Return the description of one of the models.

        Raises:
            NotReady: it is not loaded.
        """
        info = engine.model_info()
        others = [each.worker.model for each in self.engines if each is not engine]
        weights = {each.name: each.weights for each in engine.worker.loaded().runner.facts.components}
        for component in info.components:
            component.shared_with = [
                each.name for each in others if each.loading.in_memory and weights[component.name] in each.weights
            ]
        return info

    async def flush_cache(self, name: str | None = None) -> FlushResponse:
        """Free the cached activations and the prompts' embeddings of a model; None: of all.

        Raises:
            NotFound: there is no such model.
            NotReady: none is loaded.
        """
        if name is not None or not self.are_several:
            return await self.find(name).flush_cache()
        in_memory = [engine for engine in self.engines if engine.worker.state == "ready"]
        if not in_memory:
            raise self.default.worker.model.loading.not_ready()
        answers = [await engine.flush_cache() for engine in in_memory]
        freed = [f"{engine.names[0]}: {answer.message}" for engine, answer in zip(in_memory, answers, strict=True)]
        return FlushResponse(
            success=True,
            message="; ".join(freed),
            freed_bytes=sum(answer.freed_bytes for answer in answers),
            freed_prompt_bytes=sum(answer.freed_prompt_bytes for answer in answers),
        )

    async def sleep(self, name: str | None, level: SleepLevel | None) -> SleepResponse:
        """Have a model go to sleep once no generation runs; None: all that are awake.

        Raises:
            NotFound: there is no such model.
            InvalidRequest: one cannot sleep at this level.
            InUse: a request for one waited or came meanwhile.
            NotReady: it is not loaded; none is.
        """
        if name is not None or not self.are_several:
            return await self.find(name).sleep(level)
        awake = [each for each in self.engines if each.worker.model.awake] or [self.default]
        slept = [await each.sleep(level) for each in awake]
        return slept[0].model_copy(
            update={
                "freed_bytes": sum(each.freed_bytes for each in slept),
                "seconds": round(sum(each.seconds for each in slept), 4),
            }
        )
