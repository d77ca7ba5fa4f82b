"""`@bentoml.api` methods of the service, each with its row of the table."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TypeVar

import bentoml
from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse, Response

from cache_dit_serving.api.answering import error_response
from cache_dit_serving.api.matching import row_of
from cache_dit_serving.api.request_state import state_of
from cache_dit_serving.errors import InternalError, ServingError

logger = logging.getLogger(__name__)

R = TypeVar("R")


def specs(method: str) -> dict[str, type[BaseModel]]:
    """Return the models of a `@bentoml.api` method by the arguments of that decorator, from its row of the table.

    Args:
        method: its name, which is its path.
    """
    row = row_of("POST", f"/{method}")
    assert row.handler is None
    assert row.body is not None
    models: dict[str, type[BaseModel]] = {}
    if row.body.model.model_fields:
        models["input_spec"] = row.body.model
    if isinstance(row.answer, type):
        models["output_spec"] = row.answer
    return models


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
