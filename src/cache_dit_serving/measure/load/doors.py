"""Doors of a server: each sends one request by a route and reads the answer's facts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any, NoReturn, Protocol
from urllib.parse import quote

import httpx

from cache_dit_serving.errors import ConfigError
from cache_dit_serving.measure.load.client import Answer, Client, now
from cache_dit_serving.measure.load.outcome import Failed, Reading

POLL_S, POLL_SHARE = 0.02, 0.02
"""Least pause between two looks at a job, seconds, and the pause as a share of the time that it has taken."""
OLD_FIELDS = frozenset(
    {
        "prompt",
        "negative_prompt",
        "width",
        "height",
        "num_inference_steps",
        "guidance_scale",
        "sigmas",
        "seed",
        "num_images",
        "image_urls",
        "num_frames",
        "fps",
        "include_stats",
        "output_format",
        "output_dir",
    }
)
"""Fields of cache_dit.serve 1.3.5, which ignores all others."""


class Door(Protocol):
    """Route of a server and the shapes of its requests and answers."""

    def check(self, body: Mapping[str, Any]) -> None:
        """Refuse a body that this route would not honour.

        Raises:
            ConfigError: names the field.
        """

    async def draw(self, client: Client, body: Mapping[str, Any]) -> Reading:
        """Send a request and wait for its outputs.

        Raises:
            Failed: there are none.
        """


class Generate:
    """`POST /generate` of this server, answered as JSON."""

    def __init__(self, model: str | None = None) -> None:
        """
        Args:
            model: name of one of the server's models; None: not sent.
        """
        self._model = model

    def check(self, body: Mapping[str, Any]) -> None:
        """Take every field: the server checks them."""

    async def draw(self, client: Client, body: Mapping[str, Any]) -> Reading:
        return reading_of(await client.ask("POST", "/generate", of_model(self._model, body)))


class File:
    """`POST /generate` of this server, answered with the file itself."""

    def __init__(self, accept: str, model: str | None = None) -> None:
        """
        Args:
            accept: media type of the file, such as `image/png`.
            model: name of one of the server's models; None: not sent.
        """
        self._accept, self._model = accept, model

    def check(self, body: Mapping[str, Any]) -> None:
        if body.get("num_images", 1) != 1:
            raise ConfigError("num_images: the door `file` answers with one file; use --door generate")

    async def draw(self, client: Client, body: Mapping[str, Any]) -> Reading:
        answer = await client.ask("POST", "/generate", of_model(self._model, body), accept=self._accept)
        kind = answer.headers.get("Content-Type", "")
        if not answer.content or kind.partition("/")[0] not in ("image", "video", "audio"):
            raise Failed("invalid answer", "the answer is no file")
        return Reading(
            outputs=1, stages=server_timing(answer.headers.get("Server-Timing", "")), **_cache(answer.headers)
        )


class Jobs:
    """`POST /jobs` of this server: submit, look until the job has ended, fetch its files, delete it."""

    def __init__(self, model: str | None = None) -> None:
        """
        Args:
            model: name of one of the server's models; None: not sent.
        """
        self._model = model

    def check(self, body: Mapping[str, Any]) -> None:
        """Take every field: the server checks them."""

    async def draw(self, client: Client, body: Mapping[str, Any]) -> Reading:
        begun = now()
        job = (await client.ask("POST", "/jobs", of_model(self._model, body))).json()
        route = f"/jobs/{quote(str(job.get('id')), safe='')}"
        try:
            while job.get("state") in ("queued", "running"):
                await asyncio.sleep(max(POLL_S, POLL_SHARE * (now() - begun)))
                job = (await client.ask("GET", route)).json()
            if job.get("state") != "succeeded":
                error = job.get("error")
                code = error.get("code") if isinstance(error, dict) else None
                raise Failed(f"job {job.get('state')}" + (f" {code}" if isinstance(code, str) else ""))
            result = job.get("result")
            reading = reading_from(result if isinstance(result, dict) else {})
            files = [
                await client.ask("GET", f"{route}/outputs/{number}", accept="*/*") for number in range(reading.outputs)
            ]
        finally:
            # The files of a benchmark would fill the server's disk. Deleting them is not timed.
            client.later("DELETE", route)
        return reading if files and all(file.content for file in files) else _no_output()


class OpenAiImages:
    """`POST /v1/images/generations`, of this server or another that speaks OpenAI's API."""

    def __init__(self, model: str | None) -> None:
        """
        Args:
            model: the server's name of the model; None: not sent.
        """
        self._model = model

    def check(self, body: Mapping[str, Any]) -> None:
        if ("width" in body) != ("height" in body):
            raise ConfigError("width, height: OpenAI's `size` has both; send both or none")

    async def draw(self, client: Client, body: Mapping[str, Any]) -> Reading:
        sent = {name: value for name, value in body.items() if name not in ("width", "height", "num_images")}
        if "width" in body:
            sent["size"] = f"{body['width']}x{body['height']}"
        if "num_images" in body:
            sent["n"] = body["num_images"]
        answer = await client.ask("POST", "/v1/images/generations", of_model(self._model, sent))
        value = answer.json()
        data = value.get("data")
        listed = data if isinstance(data, list) else []
        files = [each for each in listed if isinstance(each, dict) and (each.get("b64_json") or each.get("url"))]
        evidence = value.get("cache_dit")
        told = reading_from(evidence) if isinstance(evidence, dict) else Reading()
        update = (
            {"outputs": len(files)} if told.steps is not None else {"outputs": len(files), **_cache(answer.headers)}
        )
        return told.model_copy(update=update) if files else _no_output()


class OldServer:
    """`POST /generate` of cache_dit.serve, whose answer has one time for everything."""

    def check(self, body: Mapping[str, Any]) -> None:
        for name in body:
            if name not in OLD_FIELDS:
                raise ConfigError(f"{name}: cache_dit.serve has no such field and would ignore it; remove it")

    async def draw(self, client: Client, body: Mapping[str, Any]) -> Reading:
        return reading_of(await client.ask("POST", "/generate", dict(body)))


DOORS = ("generate", "file", "jobs", "openai", "old")
"""Names of the doors, as the flag has them."""


def door_of(name: str, *, accept: str, model: str | None) -> Door:
    """Return a door by its name. `accept` is for `file`, `model` for all but `old`."""
    doors: dict[str, Door] = {
        "generate": Generate(model),
        "file": File(accept, model),
        "jobs": Jobs(model),
        "openai": OpenAiImages(model),
        "old": OldServer(),
    }
    return doors[name]


def of_model(model: str | None, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a body with the name of a model, unless it names one itself or there is none to name."""
    return {"model": model, **body} if model else dict(body)


def reading_of(answer: Answer) -> Reading:
    """Return the facts of an answer of /generate.

    Raises:
        Failed: it holds no output.
    """
    reading = reading_from(answer.json())
    return reading if reading.outputs else _no_output()


def reading_from(value: Mapping[str, Any]) -> Reading:
    """Return the facts of the JSON of an answer, as far as it has them in the shapes expected."""
    images, timings, cache = value.get("images"), value.get("timings"), value.get("cache")
    outputs = len(images) if isinstance(images, list) else sum(bool(value.get(kind)) for kind in ("video", "audio"))
    times: dict[str, Any] = timings if isinstance(timings, dict) else {"generate": value.get("time_cost")}
    named = {plain_stage(name): _seconds(each) for name, each in times.items() if name != "prompt_hits"}
    stages = [(name, seconds) for name, seconds in named.items() if seconds is not None]
    report = cache if isinstance(cache, dict) else {}
    cached, computed = _count(report.get("cached_steps")), _count(report.get("computed_steps"))
    return Reading(
        outputs=outputs,
        stages=dict(stages[:MOST_STAGES]),
        steps=None if cached is None or computed is None else cached + computed,
        cached_steps=cached,
        prompt_hits=_count(times.get("prompt_hits")),
    )


MOST_STAGES = 12
"""Stages of an answer that are kept."""


def server_timing(header: str) -> dict[str, float]:
    """Return the seconds by stage of a `Server-Timing` header, which has milliseconds."""
    found = re.findall(r"([A-Za-z][\w-]{0,39})\s*;\s*dur=(\d{1,9}(?:\.\d{1,9})?)", header[:4096])
    return {name: float(milliseconds) / 1000 for name, milliseconds in found[:MOST_STAGES]}


def plain_stage(name: str) -> str:
    """Return the name of a stage without characters that a name has not."""
    return re.sub(r"\W", "_", name)[:40]


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e9 else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 1 << 31 else None


def _cache(headers: httpx.Headers) -> dict[str, int]:
    told = {"steps": headers.get("X-Cache-Steps", ""), "cached_steps": headers.get("X-Cache-Cached-Steps", "")}
    return {name: int(value) for name, value in told.items() if re.fullmatch(r"\d{1,9}", value)}


def _no_output() -> NoReturn:
    raise Failed("invalid answer", "the answer holds no output")
