"""A server of every door's shapes that takes known times: one request at a time, as a pipeline does."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

PNG = b"\x89PNG\r\n\x1a\n"
CACHE = {"cached_steps": 5, "computed_steps": 15, "engaged": True}
HEADERS = {"Server-Timing": "queue;dur=1.5, denoise;dur=4.0", "X-Cache-Cached-Steps": "5", "X-Cache-Steps": "20"}


@dataclass
class Paced:
    """A server's times and failures, and the requests that it got."""

    service_s: float = 0.005
    stalls: dict[int, float] = field(default_factory=dict)
    """Seconds that a request takes in place of `service_s`, by its number."""
    failures: dict[int, Response] = field(default_factory=dict)
    """Answers in place of outputs, by the request's number."""
    info: Response | None = None
    """Answer of GET /get_model_info; None: a description."""
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    reached: threading.Event = field(default_factory=threading.Event)
    """Set once request number `reached_at` is here."""
    reached_at: int = -1

    def __post_init__(self) -> None:
        self._lane = asyncio.Lock()
        self._polls: dict[str, int] = {}

    async def _served(self, request: Request) -> Response | None:
        number = len(self.bodies)
        self.bodies.append(json.loads(await request.body()))
        self.headers.append(dict(request.headers))
        if number == self.reached_at:
            self.reached.set()
        if number in self.failures:
            return self.failures[number]
        async with self._lane:
            await asyncio.sleep(self.stalls.get(number, self.service_s))
        return None

    async def generate(self, request: Request) -> Response:
        if refused := await self._served(request):
            return refused
        if request.headers["accept"] == "image/png":
            return Response(PNG, media_type="image/png", headers=HEADERS)
        timings = {"queue": 0.0015, "denoise": 0.004, "prompt_hits": 1}
        images = ["aW1hZ2U="] * self.bodies[-1].get("num_images", 1)
        return JSONResponse({"images": images, "timings": timings, "cache": CACHE, "time_cost": 0.004})

    async def old_generate(self, request: Request) -> Response:
        return await self._served(request) or JSONResponse({"images": ["aW1hZ2U="], "time_cost": 0.004})

    async def openai(self, request: Request) -> Response:
        if refused := await self._served(request):
            return refused
        return JSONResponse({"created": 1, "data": [{"b64_json": "aW1hZ2U="}] * self.bodies[-1].get("n", 1)})

    async def submit(self, request: Request) -> Response:
        self.bodies.append(json.loads(await request.body()))
        name = f"job{len(self.bodies)}"
        self._polls[name] = 0
        return JSONResponse({"id": name, "state": "queued"}, 202)

    async def job(self, request: Request) -> Response:
        name = request.path_params["name"]
        if request.method == "DELETE":
            self.deleted.append(name)
            return Response(status_code=204)
        self._polls[name] += 1
        if self._polls[name] < 3:
            return JSONResponse({"id": name, "state": "running"})
        if self.bodies[-1].get("prompt") == "fails":
            return JSONResponse({"id": name, "state": "failed", "error": {"code": "out_of_memory", "message": "no"}})
        result = {"images": ["/outputs/a.png"], "timings": {"queue": 0.01, "denoise": 0.02}, "cache": CACHE}
        return JSONResponse({"id": name, "state": "succeeded", "result": result})

    async def output(self, request: Request) -> Response:
        return Response(PNG, media_type="image/png")

    async def model_info(self, request: Request) -> Response:
        return self.info or JSONResponse({"model": "paced", "device": "cpu", "versions": {"server": "1"}})

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/generate", self.generate, methods=["POST"]),
                Route("/old/generate", self.old_generate, methods=["POST"]),
                Route("/v1/images/generations", self.openai, methods=["POST"]),
                Route("/jobs", self.submit, methods=["POST"]),
                Route("/jobs/{name}", self.job, methods=["GET", "DELETE"]),
                Route("/jobs/{name}/outputs/0", self.output),
                Route("/get_model_info", self.model_info),
            ]
        )


@contextmanager
def paced(**times: Any) -> Iterator[Paced]:
    """A running server with these times, on a free loopback port."""
    server = Paced(**times)
    config = uvicorn.Config(
        server.app(),
        host="127.0.0.1",
        port=0,
        ws="none",
        lifespan="off",
        log_level="critical",
        timeout_graceful_shutdown=1,  # a request that stalls is given up
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        thread.join(0.01)
    server.url = f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        running.should_exit = True
        thread.join()
