"""Drawer of a running server, by its public API: each request brings its own settings."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import httpx
import numpy as np
import pybase64
from PIL import Image

from cache_dit_serving.caching.report import BlockListStats
from cache_dit_serving.caching.settings import CACHE_TYPES, CacheSettings
from cache_dit_serving.errors import ConfigError, ServingError
from cache_dit_serving.measure.search.drawer import CannotDraw, Drawn, Subject, diffs_of
from cache_dit_serving.measure.search.points import Case, Point
from cache_dit_serving.media.values import ImageOutput, MediaKind

TIMEOUT_S = 3600.0
"""Longest wait for one output, with its time in the server's queue."""


class ByHttp:
    """Drawer of a server that makes images. Seconds are the pipeline's, as the answer has them.

    They are those of denoising and decoding: the server's prompt cache answers the encoding of a known prompt. Pictures
    have 8 bits a channel, which bounds the likeness that can be seen at 0.002 of full level.
    """

    def __init__(
        self,
        url: str,
        fields: Mapping[str, Any],
        *,
        key: str | None = None,
        model: str | None = None,
        client: httpx.Client | None = None,
    ) -> None:
        """
        Args:
            fields: fields of every request beside the prompt and the seed.
            key: API key of the server.
            model: name of one of its models; None: its default one.
            client: client for `url`; None: one of its own.

        Raises:
            ConfigError: the address is no server of this kind, it has no such model, or that makes no images.
        """
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self._client = client or httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S)
            named = {"model": model} if model else {}
            capabilities = self._json(self._client.get("/capabilities", params=named))
            info = self._json(self._client.get("/get_model_info", params=named))
        except (httpx.HTTPError, httpx.InvalidURL, ServingError) as error:
            reason = error.message if isinstance(error, ServingError) else type(error).__name__
            raise ConfigError(f"--url {url}: the server does not answer as one of this kind ({reason})") from error
        self._fields = named | {name: value for name, value in fields.items() if name != "num_inference_steps"}
        # The name is a condition: a search of another model of the server does not go on with its folder.
        self._subject = _subject(capabilities, info, named | dict(fields))

    @property
    def subject(self) -> Subject:
        return self._subject

    def draw(self, case: Case, point: Point) -> Drawn:
        body: dict[str, Any] = {
            **self._fields,
            "prompt": case.prompt,
            "seed": case.seed,
            "num_inference_steps": point.steps,
            "image_format": "png",
            "output_format": "base64",
            "include_stats": True,
        }
        body |= {"speed": "lossless"} if point.settings is None else {"cache": point.settings.effective()}
        answer = self._json(self._client.post("/generate", json=body))
        with Image.open(io.BytesIO(pybase64.b64decode(answer["images"][0]))) as image:
            media = ImageOutput(np.asarray(image.convert("RGB")))
        timings = answer["timings"]
        lists = [
            BlockListStats.model_validate(each)
            for image_stats in answer.get("stats", {}).get("cache_stats", ())
            for each in image_stats["block_lists"]
        ]
        cached = answer["cache"]["cached_steps"]
        return Drawn(media, timings["denoise"] + timings["decode"], cached, diffs_of(lists))

    def close(self) -> None:
        self._client.close()

    def _json(self, response: httpx.Response) -> dict[str, Any]:
        """Return the body of an answer.

        Raises:
            CannotDraw: the server refuses the request's values.
            ConfigError: it has no model of this name.
            ServingError: it failed.
        """
        try:
            body: dict[str, Any] = response.json()
        except ValueError:
            raise ServingError(f"the server answered {response.status_code} without JSON") from None
        if response.is_success:
            return body
        error = body.get("error", {})
        message = error.get("message", "")
        if error.get("code") == "model_not_found":
            raise ConfigError(f"--model: {message}")
        if response.status_code == httpx.codes.BAD_REQUEST:
            raise CannotDraw(message)
        raise ServingError(f"the server answered {response.status_code}: {message}")


def _subject(capabilities: Mapping[str, Any], model: Mapping[str, Any], fields: Mapping[str, Any]) -> Subject:
    """Return the server's model.

    Raises:
        ConfigError: it does not make images from a prompt, or does not let requests choose a cache.
    """
    if "image_format" not in capabilities["fields"] or "prompt" not in capabilities["fields"]:
        raise ConfigError("--url: the server's model must make images from a prompt; for others leave --url out")
    cache = capabilities["cache"]
    lossless = next(each for each in capabilities["speeds"] if each["name"] == "lossless")
    usual = lossless.get("num_inference_steps") or model["defaults"].get("num_inference_steps")
    steps = fields.get("num_inference_steps") or usual
    if not steps:
        raise ConfigError("--url: say the reference's steps: --field num_inference_steps=28")
    speeds = {
        each["name"]: Point(_own_steps(each, usual) or steps, CacheSettings.model_validate(each["settings"]))
        for each in capabilities["speeds"]
        if each["settings"]
    }
    return Subject(
        name=model["model"],
        kind=MediaKind.IMAGE,
        steps=steps,
        least_steps=capabilities["fields"].get("num_inference_steps", {}).get("minimum", 1),
        block_lists=cache["block_lists"],
        cache_types=tuple(each for each in CACHE_TYPES if cache["types"].get(each)),
        usual_steps=usual,
        configured=speeds,
        conditions={
            "device": model["device"],
            "dtype": model["dtype"],
            "attention": model["attention_backend"],
            "versions": ", ".join(f"{name} {version}" for name, version in model["versions"].items()),
            "request": ", ".join(f"{name} {value}" for name, value in sorted(fields.items())) or "the defaults",
            "by": "the server's API, 8 bits a channel",
        },
    )


def _own_steps(speed: Mapping[str, Any], usual: int | None) -> int | None:
    """Return the steps of a speed that has its own; None if it has the model's usual ones."""
    steps: int | None = speed.get("num_inference_steps")
    return None if steps == usual else steps
