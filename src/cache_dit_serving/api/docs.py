"""The OpenAPI document of every route."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode

from cache_dit_serving import __version__
from cache_dit_serving.api.operation import BELOW, UNSUPPORTED_FIELDS_HEADER, Content, Errors, FormFile, Operation
from cache_dit_serving.errors import Forbidden, Unauthorized
from cache_dit_serving.schemas.answers import ErrorResponse

Json = dict[str, Any]

MODE_PARAMETER: Json = {
    "name": UNSUPPORTED_FIELDS_HEADER,
    "in": "header",
    "description": "A field that the loaded model cannot honour: refuse the request, or ignore the field and report "
    "it in `warnings`. Left out: the setting server.unsupported_fields.",
    "schema": {"type": "string", "enum": ["refuse", "warn"]},
}


def openapi_document(operations: Sequence[Operation]) -> Json:
    """Return the document, OpenAPI 3.1: the schemas of pydantic 2 are those of its JSON Schema dialect."""
    schemas: Json = {}
    paths: Json = {}
    for operation in operations:
        if operation.summary:
            paths.setdefault(operation.route, {})[operation.method.lower()] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Cache-DiT Serving",
            "version": __version__,
            "description": "Diffusion transformers accelerated by cache-dit. Every error has the shape of "
            "ErrorResponse, every answer the header X-Request-ID.",
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation, schemas: Json) -> Json:
    name = re.sub(r"[{}]", "", operation.route.removesuffix(BELOW)).strip("/").replace("/", "_").replace(".", "_")
    name = (name or "index") + ("_path" if operation.route.endswith(BELOW) else "")
    described: Json = {
        "operationId": f"{operation.method.lower()}_{name}",
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": _answer(operation, schemas),
    }
    errors = operation.all_errors
    if operation.open_as is None:
        errors += (Unauthorized, Forbidden)
        described["security"] = [{}, {"key": []}]  # a server may have keys
    described["responses"] |= _error_answers(errors, schemas)
    text = {"type": "string", "minLength": 1}
    parameters: list[Json] = [
        {"name": part, "in": "path", "required": True, "schema": text}
        for part in re.findall(r"\{(\w+)\}", operation.route)
    ]
    parameters += [
        {"name": part, "in": "query", "description": what, "schema": text} for part, what in operation.query.items()
    ]
    parameters += [
        {"name": name, "in": "header", "description": what, "schema": {"type": "string"}}
        for name, what in operation.headers.items()
    ]
    if operation.body is not None:
        parameters.append(MODE_PARAMETER)
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        required = bool(operation.body.model.model_fields) and not operation.body.optional
        schema = _schema(operation.body.model, schemas, "validation")
        content: Json = {"application/json": {"schema": schema, "example": dict(operation.body.example)}}
        if operation.body.form is not None:
            # An image of the JSON is chosen from the disk here.
            fields = {name: value for name, value in operation.body.example.items() if isinstance(value, str | int)}
            content["multipart/form-data"] = {
                "schema": _form(operation.body.model, operation.body.form, schemas),
                "example": fields,
            }
        described["requestBody"] = {"required": required, "content": content}
    return described


def _form(model: type[BaseModel], form: Sequence[FormFile], schemas: Json) -> Json:
    """Return a reference to the schema of the form that stands for a body: its fields as text, and its files."""
    fields = schemas[model.__name__]
    files: Json = {}
    for file in form:
        content = {"type": "string", "format": "binary", "contentMediaType": file.media_type}
        files[file.name] = {"type": "array", "items": content} if file.many else content
    schemas[f"{model.__name__}Form"] = {**fields, "properties": fields["properties"] | files, "title": "As a form"}
    return {"$ref": f"#/components/schemas/{model.__name__}Form"}


def _answer(operation: Operation, schemas: Json) -> Json:
    usual: Json = {"description": "As asked.", **_content(operation.answer, schemas)}
    if operation.files:
        usual["content"] |= {media_type: {} for media_type in operation.files}
    answers = {str(operation.status): usual}
    for status, other in operation.also.items():
        answers[str(status)] = {"description": other.description, **_content(other.content, schemas)}
    return answers


def _content(content: Content, schemas: Json) -> Json:
    """Return the key `content` of an answer; nothing for an answer without a body."""
    if isinstance(content, tuple):
        return {"content": {media_type: {} for media_type in content}} if content else {}
    return {"content": {"application/json": {"schema": _schema(content, schemas, "validation")}}}


def _error_answers(errors: Errors, schemas: Json) -> Json:
    content = {"application/json": {"schema": _schema(ErrorResponse, schemas, "serialization")}}
    answers: Json = {}
    for error in sorted(errors, key=lambda error: error.status):
        answers[str(error.status)] = {"description": error.code, "content": content}
    return answers


def _schema(model: type[BaseModel], schemas: Json, mode: JsonSchemaMode) -> Json:
    """Put a model's schema and those that it refers to into `schemas`; return a reference to it."""
    schema = dict(_json_schema(model, mode))
    schemas.update(schema.pop("$defs", {}))
    schemas[model.__name__] = schema
    return {"$ref": f"#/components/schemas/{model.__name__}"}


@functools.cache
def _json_schema(model: type[BaseModel], mode: JsonSchemaMode) -> Json:
    """Return a model's schema, which many operations refer to and pydantic makes anew each time."""
    return model.model_json_schema(ref_template="#/components/schemas/{model}", mode=mode)
