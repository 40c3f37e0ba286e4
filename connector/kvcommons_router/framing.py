"""The heads that the router writes: of a request to an engine, and of an engine's answer to the client."""

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
    if keep and not http10:
        if head.usual is None:
            head.usual = _around_id(head, http10=False, keep=True)
        before, after = head.usual
    else:
        before, after = _around_id(head, http10=http10, keep=keep)
    return b"%b%b%b" % (before, request_id, after)


def _around_id(head: Head, *, http10: bool, keep: bool) -> tuple[bytes, bytes]:
    before = b"HTTP/1.1 %d %b\r\nX-Request-Id: " % (
        head.status,
        head.reason or REASONS.get(head.status, "").encode(),
    )
    lines = [b""]
    if head.lines:
        lines.append(head.lines)
    if (head.chunked or is_unframed(head)) and not http10:
        lines.append(b"Transfer-Encoding: chunked")
    if not keep:
        lines.append(b"Connection: close")
    elif http10:
        lines.append(b"Connection: keep-alive")
    return before, b"\r\n".join(lines) + b"\r\n\r\n"
