"""Routes beside the `@bentoml.api` methods, which are POST only: the old server's GETs, the docs, the outputs."""

from __future__ import annotations

import functools

import bentoml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from cache_dit_serving.api.docs import SWAGGER_PAGE, openapi_document
from cache_dit_serving.api.envelope import error_response, request_id_of
from cache_dit_serving.api.native import NativeApi
from cache_dit_serving.api.operations import BELOW, OPERATIONS
from cache_dit_serving.errors import ServingError


def mounted_routes() -> Starlette:
    """An app to mount at "/"; its handlers reach the service's NativeApi once there is one."""

    async def health(request: Request) -> Response:
        return JSONResponse(_api().health().model_dump(mode="json"))

    async def get_model_info(request: Request) -> Response:
        return JSONResponse(_api().model_info().model_dump(mode="json"))

    async def capabilities(request: Request) -> Response:
        return JSONResponse(_api().capabilities().model_dump(mode="json"))

    async def outputs(request: Request) -> Response:
        path, media_type = _api().outputs.find(request.path_params["path"])
        return FileResponse(path, media_type=media_type, headers={"X-Content-Type-Options": "nosniff"})

    async def docs(request: Request) -> Response:
        return HTMLResponse(SWAGGER_PAGE)

    async def index(request: Request) -> Response:
        # BentoML's own page loads a third party's script.
        return RedirectResponse("docs")

    async def openapi(request: Request) -> Response:
        return Response(_document(), media_type="application/json")

    async def serving_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServingError)
        return error_response(error, request_id_of(request.scope))

    handlers = {
        "/health": health,
        "/get_model_info": get_model_info,
        "/capabilities": capabilities,
        "/outputs" + BELOW: outputs,
        "/": index,
        "/docs": docs,
        "/openapi.json": openapi,
    }
    return Starlette(
        routes=[
            Route(operation.route.replace(BELOW, "/{path:path}"), handlers[operation.route], methods=[operation.method])
            for operation in OPERATIONS
            if operation.mounted
        ],
        exception_handlers={ServingError: serving_error},
    )


@functools.cache
def _document() -> bytes:
    """The OpenAPI document, made once: making it takes 90 ms, and the event loop waits."""
    return bytes(JSONResponse(openapi_document()).body)


def _api() -> NativeApi:
    api = bentoml.get_current_service().api
    assert isinstance(api, NativeApi)
    return api
