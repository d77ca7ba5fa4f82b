"""OpenAI's API: which model there is, and how its dialect names what /generate names otherwise."""

from __future__ import annotations

import time
from typing import Any

from cache_dit_serving.api.native import NativeApi
from cache_dit_serving.errors import NotFound
from cache_dit_serving.findings import cut
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.schemas.openai import OpenAiModel, OpenAiModels


class Served:
    """The one model, by the names that clients may call it."""

    def __init__(self, native: NativeApi) -> None:
        self._native = native
        self._started = int(time.time())

    @property
    def model(self) -> PlannedModel:
        """
        Raises:
            NotReady: there is no loaded model.
        """
        return self._native.worker.loaded().model

    @property
    def names(self) -> tuple[str, ...]:
        """The first is the one that answers tell.

        Raises:
            NotReady: there is no loaded model.
        """
        loaded = self._native.worker.loaded()
        return self._native.settings.server.model_names or (loaded.runner.facts.name,)

    def check(self, name: str | None) -> None:
        """
        Raises:
            NotFound: another model is asked for.
            NotReady: there is no loaded model.
        """
        if name is not None and name not in self.names:
            message = f"the model {cut(name)!r} is not served here; there is {', '.join(self.names)}"
            raise NotFound(message, param="model", code="model_not_found")

    def listed(self) -> OpenAiModels:
        """
        Raises:
            NotReady: there is no loaded model.
        """
        return OpenAiModels(data=[self._told(name) for name in self.names])

    def one(self, name: str) -> OpenAiModel:
        """
        Raises:
            NotFound: it is not served here.
            NotReady: there is no loaded model.
        """
        self.check(name)
        return self._told(name)

    def _told(self, name: str) -> OpenAiModel:
        return OpenAiModel(id=name, created=self._started)


def edit_respelt(tree: dict[str, Any]) -> dict[str, Any]:
    """JSON of /v1/images/edits with its pictures in the fields of /generate."""
    tree = dict(tree)
    images = [each for name in ("image", "images") if name in tree for each in _listed(tree.pop(name))]
    if images:
        tree["image_urls"] = [*tree.get("image_urls", ()), *map(_address, images)]
    if "mask" in tree:
        tree["mask_url"] = _address(tree.pop("mask"))
    return tree


def video_respelt(tree: dict[str, Any]) -> dict[str, Any]:
    """JSON of /v1/videos with its picture in the field of /generate."""
    tree = dict(tree)
    if "input_reference" in tree:
        tree["image_urls"] = [_address(each) for each in _listed(tree.pop("input_reference"))]
    return tree


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _address(value: Any) -> Any:
    """Of a picture: OpenAI puts it into an object."""
    return value["image_url"] if isinstance(value, dict) and set(value) == {"image_url"} else value
