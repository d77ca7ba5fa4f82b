"""`@bentoml.api` methods of the service, each with its row of the table."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeVar

import bentoml
from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse, Response

from cache_dit_serving.api.answering import error_response
from cache_dit_serving.api.matching import row_of
from cache_dit_serving.api.request_state import state_of
from cache_dit_serving.errors import InternalError, ServingError

logger = logging.getLogger(__name__)

R = TypeVar("R")


def bentoml_api(method: Callable[..., Awaitable[Any]]) -> Any:
    """Make a method of the service the `@bentoml.api` of its row: POST to the method's name."""
    row = row_of("POST", f"/{method.__name__}")
    assert row.handler is None
    assert row.body is not None
    specs: dict[str, type[BaseModel]] = {}
    if row.body.model.model_fields:
        specs["input_spec"] = row.body.model
    if isinstance(row.answer, type):
        specs["output_spec"] = row.answer
    return bentoml.api(**specs)(answers_errors(method))


def answers_errors(method: Callable[..., Awaitable[R]]) -> Callable[..., Awaitable[R | JSONResponse]]:
    """Make a `@bentoml.api` method answer a ServingError in the contract's shape.

    BentoML 1.4 would wrap a 4xx into an array and mask a 5xx, and it takes status and headers from the context.
    """

    @wraps(method)
    async def answering(self: object, ctx: bentoml.Context, **fields: object) -> R | JSONResponse:
        try:
            answer = await method(self, ctx, **fields)
            if isinstance(answer, Response):
                ctx.response.status_code = answer.status_code
            return answer
        except ServingError as error:
            serving_error = error
        except ValidationError:
            # The body has been checked: this is an answer of ours, and BentoML would call it the caller's fault.
            logger.exception("the answer is not valid")
            serving_error = InternalError()
        ctx.response.status_code = serving_error.status
        ctx.response.headers.update(serving_error.headers)
        return error_response(serving_error, state_of(ctx.request.scope).id)

    return answering
