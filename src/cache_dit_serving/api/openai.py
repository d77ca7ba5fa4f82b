"""OpenAI's API: the one model, by its names."""

from __future__ import annotations

import time

from cache_dit_serving.engine.engine import Engine
from cache_dit_serving.errors import NotFound
from cache_dit_serving.findings import cut
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.schemas.openai import OpenAiModel, OpenAiModels


class Served:
    """The one model, by the names that clients may use."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._started = int(time.time())

    @property
    def model(self) -> PlannedModel:
        """Loaded model.

        Raises:
            NotReady: there is no loaded model.
        """
        return self._engine.worker.loaded().model

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the model; answers use the first.

        Raises:
            NotReady: there is no loaded model.
        """
        loaded = self._engine.worker.loaded()
        return self._engine.settings.server.model_names or (loaded.runner.facts.name,)

    def check(self, name: str | None) -> None:
        """Refuse the name of another model.

        Raises:
            NotFound: another model is asked for.
            NotReady: there is no loaded model.
        """
        if name is not None and name not in self.names:
            message = f"the model {cut(name)!r} is not served here; there is {', '.join(self.names)}"
            raise NotFound(message, param="model", code="model_not_found")

    def listed(self) -> OpenAiModels:
        """Return the model under each of its names.

        Raises:
            NotReady: there is no loaded model.
        """
        return OpenAiModels(data=[self._told(name) for name in self.names])

    def one(self, name: str) -> OpenAiModel:
        """Return the model under one of its names.

        Raises:
            NotFound: it is not served here.
            NotReady: there is no loaded model.
        """
        self.check(name)
        return self._told(name)

    def _told(self, name: str) -> OpenAiModel:
        return OpenAiModel(id=name, created=self._started)
