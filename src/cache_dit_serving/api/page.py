"""The pages for people: the playground, and `/docs` (Swagger UI as BentoML ships it). Nothing is a third party's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from cache_dit_serving.api.parts import parts
from cache_dit_serving.errors import InternalError, NotFound

STATIC = Path(__file__).with_name("static")
PLAYGROUND = STATIC / "ui"
MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css"}
"""Files of the playground, by their suffix."""
PLAYGROUND_POLICY = (
    "default-src 'self'; connect-src {}; img-src 'self' data: blob:; media-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The playground's Content-Security-Policy, without the origins it asks: no script and no style stands in the page."""
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; media-src data: blob:; "
    "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page's Content-Security-Policy. Swagger UI sets styles inline, and draws its icons from data URLs."""
DAY_S = 24 * 3600


async def index(request: Request) -> Response:
    # BentoML's own page loads a third party's script.
    return RedirectResponse("ui")


async def playground(request: Request) -> Response:
    if request.scope.get("raw_path", b"").endswith(b"/"):
        return RedirectResponse("../ui")  # the page's links are relative
    origins = " ".join(["'self'", *await asyncio.to_thread(_origins_of_outputs)])
    headers = {"Content-Security-Policy": PLAYGROUND_POLICY.format(origins), "Cache-Control": "no-cache"}
    return FileResponse(STATIC / "ui.html", headers=headers)


def _origins_of_outputs() -> list[str]:
    """Return the origin of the object storage that outputs lie in; none: they lie in a folder of this server."""
    try:
        url = urlsplit(parts().engine.outputs.address("any.png", "url", ""))
    except InternalError:  # the storage signs nothing now; all else on the page works
        return []
    return [f"{url.scheme}://{url.netloc}"] if url.netloc else []


async def playground_file(request: Request) -> Response:
    """A script or style of the playground, by its name; the server's own files alone are looked up."""
    path = request.path_params["path"]
    found = {file.name: file for file in PLAYGROUND.iterdir() if file.suffix in MEDIA_TYPES}.get(path)
    if found is None:
        raise NotFound(f"the playground has no file {path!r}")
    headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    return FileResponse(found, media_type=MEDIA_TYPES[found.suffix], headers=headers)


async def docs(request: Request) -> Response:
    if request.scope.get("raw_path", b"").endswith(b"/"):
        return RedirectResponse("../docs")  # the page's links are relative
    return FileResponse(STATIC / "docs.html", headers={"Content-Security-Policy": POLICY})


async def docs_script(request: Request) -> Response:
    return FileResponse(STATIC / "docs.js", media_type="text/javascript", headers={"Cache-Control": "no-cache"})


async def favicon(request: Request) -> Response:
    """A panda by the embedded model, 32 x 32 pixels. Browsers go by its media type, not by the name they ask for."""
    headers = {"Cache-Control": f"max-age={DAY_S}"}
    return FileResponse(STATIC / "favicon.png", media_type="image/png", headers=headers)
