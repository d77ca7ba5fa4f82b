"""OpenAI's API: the models, by their names."""

from __future__ import annotations

import time

from cache_dit_serving.engine.models import Models
from cache_dit_serving.schemas.openai import OpenAiModel, OpenAiModels


class Served:
    """The models, under each of the names that clients may use."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._started = int(time.time())

    def listed(self) -> OpenAiModels:
        """Return the models under each of their names, the default one first.

        Raises:
            NotReady: the only model has no configured name, and is not loaded yet.
        """
        return OpenAiModels(data=[self._told(name) for name in self._models.names])

    def one(self, name: str) -> OpenAiModel:
        """Return a model under one of its names.

        Raises:
            NotFound: it is not served here.
            NotReady: as :meth:`listed`.
        """
        self._models.find(name)
        return self._told(name)

    def _told(self, name: str) -> OpenAiModel:
        return OpenAiModel(id=name, created=self._started)
