"""Refusals: every answer that the router gives by itself, in the shape OpenAI's clients expect."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import orjson

MODELS_SHOWN_MAX: Final = 10
RETRY_UNSERVED_SECONDS: Final = 5

REASONS: dict[int, str] = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    417: "Expectation Failed",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    499: "Client Closed Request",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}


class Refusal(Exception):
    """A request that the router answers itself with an error.

    `close` says that the connection can't be kept: what follows on it is not understood or not wanted.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_seconds: int | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_seconds = retry_after_seconds
        self.close = close

    @property
    def kind(self) -> str:
        """OpenAI's `type` for this status."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> bytes:
        """The JSON that OpenAI's clients turn into their own exception."""
        return orjson.dumps(
            {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}
        )


def not_served(model: str, served: Collection[str]) -> Refusal:
    """The refusal of a model that nobody here has, with the names of some that somebody has."""
    shown = ", ".join(sorted(served)[:MODELS_SHOWN_MAX])
    if not shown:
        known = "no model is served now"
    else:
        more = len(served) - MODELS_SHOWN_MAX
        known = f"served are {shown}" + (f" and {more} more (GET /v1/models)" if more > 0 else "")
    message = f"The model {model[:200]!r} is not served here; {known}."
    return Refusal(404, message, code="model_not_found", param="model")


def unserved(model: str) -> Refusal:
    """The refusal of a model that is served here, but by nobody at this moment."""
    message = f"No instance of the model {model[:200]!r} is ready now."
    return Refusal(503, message, code="no_instance_ready", param="model", retry_after_seconds=RETRY_UNSERVED_SECONDS)


def render(
    status: int,
    body: bytes,
    *,
    content_type: bytes = b"application/json",
    request_id: bytes = b"",
    keep_alive: bool = True,
    http10: bool = False,
    head_only: bool = False,
    extra: bytes = b"",
) -> bytes:
    """One whole response of the router's own making."""
    parts = [
        b"HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n"
        % (status, REASONS.get(status, "Error").encode(), content_type, len(body))
    ]
    if request_id:
        parts.append(b"X-Request-Id: %s\r\n" % request_id)
    if not keep_alive:
        parts.append(b"Connection: close\r\n")
    elif http10:
        parts.append(b"Connection: keep-alive\r\n")
    parts.append(extra)
    parts.append(b"\r\n")
    if not head_only:
        parts.append(body)
    return b"".join(parts)


def render_refusal(
    refusal: Refusal, *, request_id: bytes, keep_alive: bool, http10: bool = False, head_only: bool = False
) -> bytes:
    """The response of a refusal, with what the client needs to act on it."""
    extra = b""
    if refusal.retry_after_seconds is not None:
        extra += b"Retry-After: %d\r\n" % refusal.retry_after_seconds
    if refusal.status == 401:
        extra += b'WWW-Authenticate: Bearer realm="kvcommons"\r\n'
    if refusal.status == 405 and refusal.param:
        extra += b"Allow: %s\r\n" % refusal.param.encode("ascii")
    return render(
        refusal.status,
        refusal.body(),
        request_id=request_id,
        keep_alive=keep_alive and not refusal.close,
        http10=http10,
        head_only=head_only,
        extra=extra,
    )
