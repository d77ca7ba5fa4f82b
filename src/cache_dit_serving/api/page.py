"""The page of `/docs` and its files: Swagger UI as BentoML ships it, our own script, the icon. No third party's."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

STATIC = Path(__file__).with_name("static")
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; media-src data: blob:; "
    "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page's Content-Security-Policy. Swagger UI sets styles inline, and draws its icons from data URLs."""
DAY_S = 24 * 3600


async def index(request: Request) -> Response:
    # BentoML's own page loads a third party's script.
    return RedirectResponse("docs")


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
