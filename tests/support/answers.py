"""Reading what a server answers."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import httpx
import numpy as np
import requests
from PIL import Image

from tests.support.server import Server


def pixels(text: str) -> np.ndarray[Any, Any]:
    """(height, width, 3) bytes of a picture that came as base64."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def metric(server: Server, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    total = 0.0
    for line in server.get("/metrics").text.splitlines():
        found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        if found and all(f'{key}="{value}"' in (found[1] or "") for key, value in labels.items()):
            total += float(found[2])
    return total


def error(response: requests.Response, status: int) -> dict[str, Any]:
    """The error of an answer that must have this status."""
    assert response.status_code == status, response.text
    body: dict[str, Any] = response.json()["error"]
    return body


def check(response: requests.Response | httpx.Response, status: int, param: str | None, *words: str) -> None:
    """Hold an error to the one shape, its status, its field and its words; nothing of the server's inside is in it."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error", "request_id"}
    assert body["error"].keys() == {"message", "type", "code", "param"}
    assert body["error"]["param"] == param
    for word in words:
        assert word in body["error"]["message"]
    assert body["request_id"] == response.headers["X-Request-ID"]
    for leak in ("Traceback", "/src/", ".py", "site-packages", "pydantic"):
        assert leak not in response.text
