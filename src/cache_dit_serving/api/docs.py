"""The OpenAPI document of every route, and the Swagger page that shows it with the scripts BentoML ships."""

from __future__ import annotations

import copy
from typing import Any

from pydantic import BaseModel

from cache_dit_serving import __version__
from cache_dit_serving.errors import (
    BodyTooLarge,
    CacheNotEngaged,
    ClientGone,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotFound,
    NotReady,
    QueueFull,
    ServingError,
    UnsupportedMediaType,
)
from cache_dit_serving.schemas import Capabilities, ErrorResponse, HealthResponse, ModelInfo

SWAGGER_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Cache-DiT Serving</title>
<link rel="stylesheet" href="static_content/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="static_content/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", tryItOutEnabled: true})</script>
</body>
</html>
"""

SCHEMA_REF = "#/components/schemas/{model}"
BODY_ERRORS: tuple[type[ServingError], ...] = (InvalidRequest, BodyTooLarge, UnsupportedMediaType)
# Statuses that each method can answer beside 200.
API_ERRORS: dict[str, tuple[type[ServingError], ...]] = {
    "/generate": (*BODY_ERRORS, CacheNotEngaged, QueueFull, ClientGone, InternalError, NotReady, DeadlineExceeded),
    "/compare": (*BODY_ERRORS, CacheNotEngaged, QueueFull, ClientGone, InternalError, NotReady, DeadlineExceeded),
    "/health": (NotReady,),
    "/model_info": (NotReady,),
    "/flush_cache": (NotReady,),
}


def openapi_document(bento_document: dict[str, Any]) -> dict[str, Any]:
    """BentoML's document of its methods, with the mounted routes and every method's own errors added."""
    document = copy.deepcopy(bento_document)
    document["info"] = {
        "title": "Cache-DiT Serving",
        "version": __version__,
        "description": "Diffusion transformers accelerated by cache-dit. Every error has the shape of ErrorResponse.",
    }
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for model in (Capabilities, ErrorResponse, HealthResponse, ModelInfo):
        schema = model.model_json_schema(ref_template=SCHEMA_REF, mode="serialization")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    paths = document["paths"]
    for path, errors in API_ERRORS.items():
        responses = {str(status): body for status, body in paths[path]["post"]["responses"].items()}
        paths[path]["post"]["responses"] = {"200": responses["200"]} | _error_responses(errors)
    paths["/health"]["get"] = _get("Whether the server can generate, and why not.", HealthResponse, (NotReady,))
    paths["/get_model_info"] = {"get": _get("The loaded model and what it takes.", ModelInfo, (NotReady,))}
    paths["/capabilities"] = {"get": _get("What this server accepts, for programs.", Capabilities, (NotReady,))}
    paths["/outputs/{path}"] = {
        "get": {
            "summary": "A picture that a request wanted as a URL.",
            "tags": ["Outputs"],
            "parameters": [{"name": "path", "in": "path", "required": True, "schema": {"type": "string"}}],
            "responses": {"200": {"description": "The file."}} | _error_responses((NotFound,)),
        }
    }
    return document


def _get(summary: str, model: type[BaseModel], errors: tuple[type[ServingError], ...]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": SCHEMA_REF.format(model=model.__name__)}}}
    return {
        "summary": summary,
        "tags": ["Service APIs"],
        "responses": {"200": {"description": "OK", "content": content}} | _error_responses(errors),
    }


def _error_responses(errors: tuple[type[ServingError], ...]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": SCHEMA_REF.format(model="ErrorResponse")}}}
    return {str(error.status): {"description": error.code, "content": content} for error in errors}
