"""Exception tree, and the one JSON shape of every error answer.

A :class:`ServingError` holds only text written for the caller. Any other exception becomes an :class:`InternalError`,
whose details stay in the log under the request id.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

E = TypeVar("E", bound=BaseException)


class ServingError(Exception):
    """An error with an HTTP answer. Subclasses define `status` (the HTTP status), `type` and `code`."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            param: field of the request that caused it.
            retry_after_s: time after which the caller may retry, seconds.
            details: JSON values of the answer beside `error`.
        """
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code
        self.retry_after_s = retry_after_s
        self.details = dict(details or {})

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer: `Retry-After` in whole seconds, at least 1, if `retry_after_s` is set."""
        if self.retry_after_s is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}

    def body(self, request_id: str) -> dict[str, Any]:
        """Return the JSON body: `{"error": {message, type, code, param}, "request_id"}` and `details`."""
        return {
            "error": {"message": self.message, "type": self.type, "code": self.code, "param": self.param},
            "request_id": request_id,
            **self.details,
        }


class InvalidRequest(ServingError):
    """An error of the caller. `param` names the field; the message says what is wrong and how to correct it."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class Unauthorized(ServingError):
    """The API key is missing or unknown."""

    status = 401
    type = "authentication_error"
    code = "missing_api_key"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(ServingError):
    """The API key lacks the scope of this route."""

    status = 403
    type = "permission_error"
    code = "forbidden"


class RateLimited(ServingError):
    """The caller exceeded its rate limit."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class NotFound(ServingError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class MethodNotAllowed(ServingError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class KeyReused(ServingError):
    """An Idempotency-Key was sent again with another request."""

    status = 409
    type = "invalid_request_error"
    code = "idempotency_key_reused"


class JobNotQueued(ServingError):
    """The job no longer waits in a queue."""

    status = 409
    type = "invalid_request_error"
    code = "job_not_queued"


class CacheNotEngaged(ServingError):
    """`cache.strict` was set and no step was reused. `details` hold the cache report."""

    status = 409
    type = "invalid_request_error"
    code = "cache_not_engaged"


class SpeedLowered(ServingError):
    """`cache.strict` was set and live traffic misses a floor of the speed, so the request would get another one."""

    status = 409
    type = "invalid_request_error"
    code = "speed_lowered"


class BodyTooLarge(ServingError):
    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class BodyTooSlow(ServingError):
    status = 408
    type = "invalid_request_error"
    code = "body_too_slow"


class UnsupportedMediaType(ServingError):
    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class RangeNotSatisfiable(ServingError):
    status = 416
    type = "invalid_request_error"
    code = "range_not_satisfiable"


class QueueFull(ServingError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class ClientGone(ServingError):
    """The client closed the connection. Only the access log shows this status."""

    status = 499
    type = "invalid_request_error"
    code = "client_gone"


class InternalError(ServingError):
    status = 500

    def __init__(self, message: str = "The server failed on this request; its log has the details.") -> None:
        super().__init__(message)


class OutOfMemory(InternalError):
    code = "out_of_memory"

    def __init__(self, would_fit: tuple[int, int] | None = None) -> None:
        """
        Args:
            would_fit: (width, height) in pixels that would fit, by measurements of earlier requests.
        """
        sentence = "The device ran out of memory on this request; ask for a smaller size."
        if would_fit is not None:
            sentence += " By what was measured here, {} x {} would fit.".format(*would_fit)
        super().__init__(sentence)


class RunnerLost(ServingError):
    """The processes that run the model are lost and are being restarted."""

    status = 503
    code = "runner_lost"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The model's processes were lost ({reason}); they start anew.", retry_after_s=30)


class WakeFailed(ServingError):
    """The model sleeps, and its weights do not fit into the device's memory now."""

    status = 503
    code = "wake_failed"

    def __init__(self) -> None:
        super().__init__(
            "The model is asleep, and its weights do not fit into the device's free memory; another process may hold "
            "it. Come back later.",
            retry_after_s=30,
        )


class InUse(ServingError):
    """The model cannot sleep, because requests wait for it."""

    status = 409
    type = "invalid_request_error"
    code = "in_use"


class NotReady(ServingError):
    """The server cannot generate now. `code` says why: it is loading, failed to load, or is shutting down."""

    status = 503
    type = "server_error"
    code = "not_ready"


class JobInterrupted(ServingError):
    """The server ended while the job ran, and the job is not restarted."""

    status = 503
    code = "interrupted"


class StoreUnavailable(ServingError):
    """The job database does not answer."""

    status = 503
    type = "service_unavailable_error"
    code = "store_unavailable"


class RefusedBySafetyCheck(ServingError):
    """The operator's safety check refused a prompt or an output. The code is OpenAI's."""

    status = 400
    type = "invalid_request_error"
    code = "content_policy_violation"

    def __init__(self, what: str, reason: str, *, param: str | None = None) -> None:
        """
        Args:
            what: the prompt, or an output.
            reason: the operator's text; may be empty.
        """
        super().__init__(f"this server's safety check refused {what}{f': {reason}' if reason else ''}", param=param)


class SafetyCheckFailed(ServingError):
    """The operator's safety check failed, and nothing passes without it."""

    status = 503
    code = "safety_check_failed"

    def __init__(self) -> None:
        super().__init__("this server's safety check does not answer; try again later", retry_after_s=10)


class DeadlineExceeded(ServingError):
    status = 504
    type = "server_error"
    code = "deadline_exceeded"


DETAILS = "; the server's log has the details"
"""Suffix of a caller's message whose cause is a library's text. The log holds that text instead."""


class LoadError(Exception):
    """The model cannot be loaded as configured. Callers see the message too, so it holds no path of the server."""


class NeedsMemory(LoadError):
    """The model does not fit into the memory that is free."""


def without_frames(error: E) -> E:
    """Return an error without the frames that it came through: they keep what was allocated in them."""
    chained: BaseException | None = error
    while chained is not None:
        chained.__traceback__ = None
        chained = chained.__cause__ or chained.__context__
    return error


def logged(message: str, cause: BaseException | None) -> str:
    """Return the log's version of a caller's message: one line that ends with the cause instead of :data:`DETAILS`."""
    short = message.removesuffix(DETAILS)
    if cause is None or short == message:
        return short
    return f"{short}: {type(cause).__name__}: {' '.join(str(cause).split())}"


class ConfigError(Exception):
    """The configuration is invalid. The message, for the operator, names the key and the remedy."""
