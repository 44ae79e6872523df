"""What a client sees of an upstream's errors (ENGINE=remote).

ApiError
├── UpstreamBusy 429              upstream_busy        (Retry-After)
├── UpstreamRefusal 4xx           the upstream's own, or upstream_refused
├── UpstreamError 502             upstream_error
│   └── UpstreamRefusedKey        upstream_refused_key
├── UpstreamUnreachable 503       upstream_unreachable
└── UpstreamTimeout 504           upstream_timeout

Every pod has the same upstream, so none of them is tried on another one.
"""

from __future__ import annotations

from services.openai.errors import ApiError


class UpstreamBusy(ApiError):
    """The upstream takes no more now."""

    status = 429
    type = "rate_limit_error"
    code = "upstream_busy"
    is_everywhere = True


class UpstreamRefusal(ApiError):
    """The upstream found fault with the request; status and words are its own."""

    type = "invalid_request_error"
    code = "upstream_refused"
    is_everywhere = True

    def __init__(self, status: int, message: str, *, kind: str | None = None, param: str | None = None, code: str | None = None) -> None:
        """As the upstream said it, as far as it said it in OpenAI's shape."""
        super().__init__(message, param=param)
        self.status = status
        self.type = kind or self.type
        self.code = code or self.code


class UpstreamError(ApiError):
    """The upstream broke, or answered what cannot be read."""

    status = 502
    code = "upstream_error"
    is_everywhere = True


class UpstreamRefusedKey(UpstreamError):
    """UPSTREAM_API_KEY is not good there, which is not the client's fault."""

    code = "upstream_refused_key"


class UpstreamUnreachable(ApiError):
    """No connection to the upstream."""

    status = 503
    code = "upstream_unreachable"
    is_everywhere = True


class UpstreamTimeout(ApiError):
    """The upstream was silent for too long."""

    status = 504
    code = "upstream_timeout"
    is_everywhere = True
