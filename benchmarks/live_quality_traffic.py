"""Mixed traffic of a live server: families of requests, and clients that send them at random times."""

from __future__ import annotations

import base64
import itertools
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import requests

from benchmarks.soak_traffic import TIMEOUT_S, pixels_of
from tests.support.images import apple, data_uri, file_of

PROMPTS = (
    "a red apple on a blue background",
    "a robot on a yellow background",
    "a cat on a green background",
    "a panda on a pink background",
)
DRIFTING = "drifting"
"""Name of the LoRA that the cache cannot follow."""


@dataclass(frozen=True)
class Family:
    """Requests of one kind."""

    name: str
    fields: Mapping[str, Any]
    """Fields that they share."""


WORDS = Family("words", {"speed": "fast"})
PICTURE = Family("a picture and words", {"speed": "fast", "image_urls": [data_uri(file_of(apple()))]})
SHIPPED_LORA = Family("LoRA `monochrome`", {"speed": "fast", "loras": [{"name": "monochrome"}]})
BAD = Family(f"LoRA `{DRIFTING}`", {"speed": "fast", "loras": [{"name": DRIFTING}]})
REPAIRED = Family(f"LoRA `{DRIFTING}` at balanced", {"speed": "balanced", "loras": [{"name": DRIFTING}]})
BALANCED = Family("balanced", {"speed": "balanced"})
LOSSLESS = Family("lossless", {"speed": "lossless"})
CLIENTS = 2
PAUSE_S = 2.0
"""Mean seconds between an answer and the next request of its client."""
POLL_S = 0.2


@dataclass(frozen=True)
class Answer:
    """A request that was answered with a picture."""

    family: Family
    request: Mapping[str, Any]
    id: str
    speed: str
    """Speed that drew it."""
    codes: tuple[str, ...]
    """Codes of its warnings."""
    pixels: str
    """Hash of its pixels."""


def answered(url: str, family: Family, **fields: Any) -> Answer:
    """Send a request of a family; return what came.

    Args:
        fields: fields beside those of the family, or in place of them.

    Raises:
        HTTPError: the server refused it or failed.
    """
    request = {"image_format": "png", **family.fields, **fields}
    response = requests.post(f"{url}/generate", json=request, timeout=TIMEOUT_S)
    response.raise_for_status()
    body = response.json()
    codes = tuple(warning["code"] for warning in body["warnings"])
    file = base64.b64decode(body["images"][0])
    return Answer(family, request, body["request_id"], body["cache"]["speed"], codes, pixels_of(file))


@dataclass
class Traffic:
    """Clients of one server, each of which sends a request of a random family, waits for the answer, and pauses."""

    url: str
    answers: list[Answer] = field(default_factory=list)
    _seeds: itertools.count[int] = field(default_factory=itertools.count)
    _failures: list[BaseException] = field(default_factory=list)

    def run_until(self, done: Callable[[], bool], families: list[Family], within_s: float = 600) -> None:
        """Send requests of these families until something is so.

        Raises:
            TimeoutError: it is not so in time.
            HTTPError: a request was refused or failed.
        """
        ended = threading.Event()
        seeds = [next(self._seeds) for _ in range(CLIENTS)]
        threads = [threading.Thread(target=self._client, args=(seed, families, ended)) for seed in seeds]
        for thread in threads:
            thread.start()
        end = time.monotonic() + within_s
        try:
            while not done():
                if self._failures:
                    raise self._failures[0]
                if time.monotonic() > end:
                    raise TimeoutError(f"not so after {within_s:.0f} s")
                time.sleep(POLL_S)
        finally:
            ended.set()
            for thread in threads:
                thread.join(TIMEOUT_S)

    def _client(self, seed: int, families: list[Family], ended: threading.Event) -> None:
        dice = random.Random(seed)
        try:
            while not ended.is_set():
                family = dice.choice(families)
                fields = {"prompt": dice.choice(PROMPTS), "seed": next(self._seeds)}
                self.answers.append(answered(self.url, family, **fields))
                ended.wait(dice.expovariate(1 / PAUSE_S))
        except Exception as error:  # noqa: BLE001 - raised again where the traffic is run
            self._failures.append(error)
