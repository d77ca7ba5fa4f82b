"""The doors of a soak: one function for each way in which a client may come, well-behaved or not."""

from __future__ import annotations

import base64
import json
import random
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import requests

from benchmarks.hostile import BODIES
from benchmarks.soak_traffic import TIMEOUT_S, Traffic, Twin
from tests.support import hostile_files
from tests.support.images import apple, data_uri, file_of

SEEDS = range(8)
PICTURE: dict[str, Any] = {"prompt": "a red apple", "speed": "lossless", "num_inference_steps": 8}
APPLE = file_of(apple())
KINDS: dict[str, dict[str, Any]] = {
    "words": {},
    "picture": {"image_urls": [data_uri(APPLE)]},
    "LoRA": {"loras": [{"name": "soft", "scale": 0.8}]},
}
"""Fields of each kind of request, beside those of every picture."""
GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
HOSTILE = [*BODIES.values(), "{", "null", '{"prompt":"a","image_urls":["data:image/png;base64,eA=="]}']
ASSETS = ("/ui", "/ui/app.js", "/ui/client.js", "/docs", "/openapi.json", "/metrics")


def request_of(twin: Twin) -> dict[str, Any]:
    """Return the request of a kind and a seed."""
    kind, seed = twin
    return PICTURE | KINDS[kind] | {"seed": seed}


def _any(dice: random.Random) -> Twin:
    return dice.choice([*KINDS]), dice.choice(SEEDS)


def generate(traffic: Traffic, dice: random.Random) -> None:
    twin = _any(dice)
    answer = traffic.sent("POST", "/generate", json=request_of(twin))
    if answer.ok:
        traffic.compare(twin, base64.b64decode(answer.json()["images"][0]))


def generate_file(traffic: Traffic, dice: random.Random) -> None:
    twin = _any(dice)
    answer = traffic.sent("POST", "/generate", json=request_of(twin), headers={"Accept": "image/png"})
    if answer.ok:
        traffic.compare(twin, answer.content)


def form(traffic: Traffic, dice: random.Random) -> None:
    seed = dice.choice(SEEDS)
    answer = traffic.sent("POST", "/generate", data=PICTURE | {"seed": seed}, files={"image_urls": APPLE})
    if answer.ok:
        traffic.compare(("picture", seed), base64.b64decode(answer.json()["images"][0]))


def job(traffic: Traffic, dice: random.Random) -> None:
    """A job that is cancelled, or followed for a while; some of its followers want previews, and most leave."""
    twin = _any(dice)
    answer = traffic.sent("POST", "/jobs", json=request_of(twin))
    if answer.status_code != 202:
        return
    where, cancelled = answer.headers["Location"], dice.random() < 0.25
    traffic.promise(where, twin, cancelled=cancelled)
    if cancelled:
        traffic.sent("DELETE", where)
    else:
        _follow(traffic, "GET", f"{where}/events?previews={dice.choice((0, 3))}", dice.choice((1, 5, 1000)))


def openai(traffic: Traffic, dice: random.Random) -> None:
    seed = dice.choice(SEEDS)
    answer = traffic.sent("POST", GENERATIONS, json=PICTURE | {"seed": seed, "n": dice.choice((1, 2))})
    if answer.ok:
        traffic.compare(("words", seed), base64.b64decode(answer.json()["data"][0]["b64_json"]))


def openai_edit(traffic: Traffic, dice: random.Random) -> None:
    seed = dice.choice(SEEDS)
    answer = traffic.sent("POST", EDITS, data=PICTURE | {"seed": seed}, files={"image": ("apple.png", APPLE)})
    if answer.ok:
        traffic.compare(("picture", seed), base64.b64decode(answer.json()["data"][0]["b64_json"]))


def openai_stream(traffic: Traffic, dice: random.Random) -> None:
    seed = dice.choice(SEEDS)
    body = PICTURE | {"seed": seed, "stream": True, "partial_images": dice.choice((0, 2))}
    lines = _follow(traffic, "POST", GENERATIONS, dice.choice((1, 1000)), json=body)
    events = [json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: {")]
    for event in events:
        if event.get("type") == "image_generation.completed":
            traffic.compare(("words", seed), base64.b64decode(event["b64_json"]))


def openai_video(traffic: Traffic, dice: random.Random) -> None:
    """A video, which the embedded model refuses by name."""
    answer = traffic.sent("POST", "/v1/videos", json={"prompt": "a red apple", "seconds": dice.choice(("4", "8"))})
    if answer.ok:
        traffic.accuse("a model of pictures took a request for a video")


def compare(traffic: Traffic, dice: random.Random) -> None:
    traffic.sent("POST", "/compare", json={"prompt": "a red apple", "seed": dice.choice(SEEDS), "speed": "fast"})


def lora(traffic: Traffic, dice: random.Random) -> None:
    traffic.sent(dice.choice(("POST", "POST", "DELETE")), "/loras/soft")


def flush(traffic: Traffic, dice: random.Random) -> None:
    traffic.sent("POST", "/flush_cache")


def read(traffic: Traffic, dice: random.Random) -> None:
    traffic.sent("GET", dice.choice((*ASSETS, "/health", "/jobs", "/loras", "/get_model_info")))


def leave(traffic: Traffic, dice: random.Random) -> None:
    traffic.sent("POST", "/generate", json=PICTURE | {"num_images": 4}, timeout=0.05 + dice.random() / 2)


def leave_half_sent(traffic: Traffic, dice: random.Random) -> None:
    """A client that leaves in the middle of its body."""
    address = urlsplit(traffic.url)
    try:
        with socket.create_connection((str(address.hostname), address.port or 80), timeout=10) as connection:
            head = ("POST /generate HTTP/1.1", "Host: soak", "Content-Type: application/json", "Content-Length: 99999")
            begun = b'{"prompt": "' + b"a" * dice.choice((0, 10_000))
            connection.sendall("\r\n".join((*head, "", "")).encode() + begun)
    except OSError:
        pass  # the server is being restarted


def hostile(traffic: Traffic, dice: random.Random) -> None:
    route, body = dice.choice(("/generate", "/jobs", "/compare", GENERATIONS)), dice.choice(HOSTILE)
    answer = traffic.sent("POST", route, data=body.encode(), headers={"Content-Type": "application/json"})
    if answer.ok:
        traffic.accuse(f"{route} took a hostile body")


def hostile_picture(traffic: Traffic, dice: random.Random) -> None:
    content = hostile_files.PICTURES[dice.choice([*hostile_files.PICTURES])]()
    if traffic.sent("POST", "/generate", data=PICTURE, files={"image_urls": content}).ok:
        traffic.accuse("a hostile picture was taken")


def _follow(traffic: Traffic, method: str, path: str, most: int, **options: Any) -> list[bytes]:
    """Return the first lines of a stream, and leave it then."""
    with requests.request(method, traffic.url + path, stream=True, timeout=TIMEOUT_S, **options) as stream:
        return [line for _, line in zip(range(most), stream.iter_lines(), strict=False)]


DOORS: dict[Callable[[Traffic, random.Random], None], int] = {
    generate: 4,
    generate_file: 3,
    form: 2,
    job: 6,
    openai: 2,
    openai_edit: 2,
    openai_stream: 2,
    openai_video: 1,
    compare: 1,
    lora: 2,
    flush: 1,
    read: 6,
    leave: 2,
    leave_half_sent: 1,
    hostile: 2,
    hostile_picture: 1,
}
"""Weight of each door."""
