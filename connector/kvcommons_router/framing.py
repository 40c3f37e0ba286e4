"""The heads that the router writes: of a request to an engine, and of an engine's answer to the client. Pure."""

from __future__ import annotations

from kvcommons_router.errors import REASONS
from kvcommons_router.request import Request
from kvcommons_router.response import Head


def request_head(request: Request, host_lines: bytes, request_id: bytes, body_bytes: int) -> bytes:
    """The head of a request as an engine gets it."""
    return b"%b %b HTTP/1.1\r\n%b%bContent-Length: %d\r\nX-Request-Id: %b\r\n\r\n" % (
        request.method,
        request.target,
        host_lines,
        request.head.forwarded,
        body_bytes,
        request_id,
    )


def is_unframed(head: Head) -> bool:
    """Whether only the end of the engine's connection tells where the answer's body ends."""
    return not head.chunked and head.content_length < 0 and head.status not in (204, 304)


def answer_head(head: Head, request_id: bytes, *, http10: bool, keep: bool) -> bytes:
    """The head of an engine's answer as the client gets it."""
    lines = [
        b"HTTP/1.1 %d %s" % (head.status, head.reason or REASONS.get(head.status, "").encode()),
        b"X-Request-Id: %s" % request_id,
    ]
    if head.lines:
        lines.append(head.lines)
    if (head.chunked or is_unframed(head)) and not http10:
        lines.append(b"Transfer-Encoding: chunked")
    if not keep:
        lines.append(b"Connection: close")
    elif http10:
        lines.append(b"Connection: keep-alive")
    return b"\r\n".join(lines) + b"\r\n\r\n"
