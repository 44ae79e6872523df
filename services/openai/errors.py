"""The errors a client can see, drawn once; Envoy's own replies are rendered from the same tree.

ApiError
├── BadRequest (400, invalid_request_error)
│   ├── InvalidJson               invalid_json
│   ├── InvalidValue              invalid_value
│   ├── MissingParameter          missing_required_parameter
│   ├── UnknownParameter          unknown_parameter
│   ├── UnsupportedParameter      unsupported_parameter
│   └── ContextLengthExceeded     context_length_exceeded
├── InvalidApiKey 401             invalid_api_key
├── Forbidden 403                 forbidden
├── NotFound 404                  not_found
│   └── ModelNotFound             model_not_found
├── MethodNotAllowed 405          method_not_allowed
├── RequestTimeout 408            request_timeout
├── RequestTooLarge 413           request_too_large
├── UnsupportedMediaType 415      unsupported_media_type
├── RateLimitExceeded 429         rate_limit_exceeded (Retry-After)
├── QueueFull 429                 queue_full           (Retry-After)
├── DeadlineUnreachable 429       deadline_unreachable (Retry-After)
│   ├── QueueTimeout              deadline_unreachable
│   └── AllPromised               deadline_unreachable
├── EngineError 500               engine_error
├── Draining 503                  draining
├── NotReady 503                  not_ready
└── DeadlineExceeded 504          deadline_exceeded

Those of ENGINE=remote are in `upstream_errors.py`.

This module knows neither HTTP libraries nor engines: a handler raises, one middleware translates.
"""

from __future__ import annotations

from typing import ClassVar, TypedDict


class ErrorFields(TypedDict):
    """The inner object of OpenAI's error body: always all four keys."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(TypedDict):
    """OpenAI's error body."""

    error: ErrorFields


class ApiError(Exception):
    """An error with its HTTP status, OpenAI `type` and `code`; `param` is the path of the parameter it is about."""

    status: int = 500
    type: str = "server_error"
    code: str = "engine_error"
    is_everywhere: ClassVar[bool] = False
    """Whether every pod would say the same, so that no other need be asked."""

    def __init__(self, message: str, *, param: str | None = None, retry_after_seconds: float | None = None) -> None:
        """`retry_after_seconds` becomes the `Retry-After` header, in whole seconds, and, if it is not whole, `retry-after-ms`."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds

    def body(self) -> ErrorBody:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class BadRequest(ApiError):
    """The request cannot be understood or carried out as it is."""

    status = 400
    type = "invalid_request_error"
    code = "bad_request"


class InvalidJson(BadRequest):
    """The body is not JSON, or not in UTF-8."""

    code = "invalid_json"


class InvalidValue(BadRequest):
    """A parameter has a value, or a type, that is not allowed."""

    code = "invalid_value"


class MissingParameter(BadRequest):
    """A required parameter is not there."""

    code = "missing_required_parameter"


class UnknownParameter(BadRequest):
    """A parameter that does not exist."""

    code = "unknown_parameter"


class UnsupportedParameter(BadRequest):
    """A parameter of OpenAI's that this server does not carry out."""

    code = "unsupported_parameter"


class ContextLengthExceeded(BadRequest):
    """The prompt is longer than the context."""

    code = "context_length_exceeded"


class InvalidApiKey(ApiError):
    """No key, or one that is unknown or expired. Keys are the edge's; no pod raises this."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(ApiError):
    """The client is known and may not do this."""

    status = 403
    type = "invalid_request_error"
    code = "forbidden"


class NotFound(ApiError):
    """No such path."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    """Another model than the served one."""

    code = "model_not_found"


class MethodNotAllowed(ApiError):
    """The path exists, the method does not; `allow` becomes the `Allow` header."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        """`allow`: the methods that exist, joined by commas."""
        super().__init__(message)
        self.allow = allow


class RequestTimeout(ApiError):
    """The client did not send its request in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class RequestTooLarge(ApiError):
    """The body is over MAX_BODY_BYTES."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class UnsupportedMediaType(ApiError):
    """Another content type or encoding than plain JSON."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class RateLimitExceeded(ApiError):
    """The client has used up what its limits allow."""

    is_everywhere = True

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class QueueFull(ApiError):
    """No slot and no place in the queue."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class DeadlineUnreachable(ApiError):
    """The request would not get its slot, or its answer, in time."""

    status = 429
    type = "rate_limit_error"
    code = "deadline_unreachable"


class QueueTimeout(DeadlineUnreachable):
    """It waited as long as it may, in vain: the prediction was wrong."""


class AllPromised(DeadlineUnreachable):
    """The slots of all pods are promised to those who were told to return: no other pod need be asked."""

    is_everywhere = True


class EngineError(ApiError):
    """The engine broke on this request."""


class Draining(ApiError):
    """The pod is stopping and takes no new request."""

    status = 503
    code = "draining"


class NotReady(ApiError):
    """The pod is still loading its model, or its engine takes nothing now."""

    status = 503
    code = "not_ready"


class DeadlineExceeded(ApiError):
    """The request's deadline passed."""

    status = 504
    code = "deadline_exceeded"
